"""Model files: the list of known ones, downloading, reading and loading."""
