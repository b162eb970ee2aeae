"""Sizes and durations formatted for people."""

from __future__ import annotations


def readable_size(size: int) -> str:
    """Format bytes as megabytes or gigabytes, in powers of ten.

    >>> readable_size(3_460_000_000)
    '3.46 GB'
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def readable_time(seconds: float) -> str:
    """Format seconds as minutes:seconds, or hours:minutes:seconds from one hour on.

    >>> readable_time(75), readable_time(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
