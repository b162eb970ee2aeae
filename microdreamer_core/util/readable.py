"""Numbers as people read them."""

from __future__ import annotations


def readable_size(size: int) -> str:
    """Bytes as megabytes or gigabytes, in powers of ten."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def readable_time(seconds: float) -> str:
    """Minutes:seconds, with the hours before them where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
