"""Entry point of the command ``microdreamer``: it answers Ctrl-C and SIGTERM before it loads anything else."""

from __future__ import annotations

import os
import signal
from typing import Any

_STOPPED = 130


def _leave(*_: Any) -> None:
    os.write(2, b"microdreamer: stopped\n")
    os._exit(_STOPPED)


# only the command imports this module; nothing else is loaded yet, so nothing can be lost
signal.signal(signal.SIGINT, _leave)
signal.signal(signal.SIGTERM, _leave)

from . import interrupts  # noqa: E402
from .streams import secure_streams  # noqa: E402


def main() -> int:
    """Run the command line so that it can be stopped at any moment; returns its exit code."""
    secure_streams()
    interrupts.handle_signals()
    try:
        from .main import main as run

        return run()
    finally:
        interrupts.ignore_signals()
