"""Model files: which there are, downloading, reading, loading."""
