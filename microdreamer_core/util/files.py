"""Files and folders of weights: their size, and a stamp that tells one from another of the same name."""

from __future__ import annotations

import hashlib
from pathlib import Path

_EDGE = 1 << 20


def list_files(path: Path) -> list[Path]:
    """List the files below a folder, sorted; a file is its own list."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def stamp_files(path: Path) -> str:
    """Hash a file's or folder's sizes and names, and the first and last megabyte of its largest file."""
    files = list_files(path)
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}/{file.stat().st_size}/".encode())
    if not files:
        return digest.hexdigest()
    largest = max(files, key=lambda file: file.stat().st_size)
    with largest.open("rb") as content:
        digest.update(content.read(_EDGE))
        content.seek(max(0, largest.stat().st_size - _EDGE))
        digest.update(content.read())
    return digest.hexdigest()
