"""The command line ``microdreamer``."""
