"""The complete job: from an image or a prompt to files."""
