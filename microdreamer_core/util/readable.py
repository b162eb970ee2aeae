"""Sizes, durations, names and errors formatted for people."""

from __future__ import annotations

import os
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MOST_QUOTED = 200


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


def escape_controls(text: str) -> str:
    r"""Write control characters as escapes, so that a file's name can neither end a line nor command the terminal.

    >>> escape_controls("a\nb")
    'a\\nb'
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def quote_error(error: BaseException) -> str:
    """Quote a library's error in one line of at most 200 characters; some repeat the whole file.

    >>> quote_error(ValueError("no  header"))
    'no header'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_QUOTED else f"{text[: _MOST_QUOTED - 3]}..."


def shorten_name(name: str, most: int) -> str:
    """Cut a name to at most ``most`` bytes as the file system counts them, between characters.

    >>> shorten_name("birds", 4)
    'bird'
    """
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name
