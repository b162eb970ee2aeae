"""Extraction of a textured mesh from a field."""
