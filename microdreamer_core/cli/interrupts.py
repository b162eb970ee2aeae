"""Stop the process by Ctrl-C or SIGTERM at any moment, within a second and with one sentence.

An exception raised by a signal handler can surface anywhere: in the import of a package, which then reports a broken package,
or in a callback from C++, which aborts. So nothing is raised here. While a command works in steps (``cancellable``), the signal
is noted, and the next step ends the work in order. If that does not happen within ``GRACE``, and everywhere else, the process
ends without returning to what it does: files are written under temporary names, which are removed, and what was finished stays.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Cancelled
from ..util.atomic import remove_unfinished
from ..util.readable import escape_controls

GRACE = 0.5
"""Seconds that a step may take to end in order."""
STOPPED = 130
"""Exit code of a stopped process, as shells have it for Ctrl-C."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_noted = False
_hint: Callable[[], str | None] | None = None
_writing, _written = threading.Lock(), False


def handle_signals() -> None:
    """Take over SIGINT and SIGTERM; call this in the main thread, before packages are loaded."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    # the interpreter writes to the socket even while the main thread computes in C
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, _note)
    threading.Thread(target=_watch, args=(receiver,), name="interrupts", daemon=True).start()


def ignore_signals() -> None:
    """Ignore signals from here on: the work is done, and the interpreter must not start a thread's work while it ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    if _noted:  # the thread is about to end the process; it could meet an interpreter half gone
        report("stopped")
        os._exit(STOPPED)


@contextmanager
def cancellable(hint: Callable[[], str | None]) -> Iterator[None]:
    """Give ``check`` the time to end the block when a signal comes.

    Args:
        hint: returns the sentence that tells how to continue, or None; used if no check is reached in time.
    """
    global _hint
    _hint = hint
    try:
        yield
    finally:
        _hint = None


def check() -> None:
    """Raise ``Cancelled`` if a signal has come; the hook of everything that works in steps."""
    if _noted:
        raise Cancelled


def report(*sentences: str | None) -> None:
    """Write to stderr why the process stops, unless it has been written; None is left out.

    Whoever comes second waits for the first one's words, since it ends the process.
    """
    global _written
    if not _writing.acquire(timeout=GRACE):  # nobody may read stderr
        return
    try:
        if not (_noted and _written):
            _written = _noted
            sys.stderr.write("".join(f"microdreamer: {escape_controls(sentence)}\n" for sentence in sentences if sentence))
            sys.stderr.flush()
    finally:
        _writing.release()


def _note(*_: Any) -> None:
    global _noted
    _noted = True


def _watch(receiver: socket.socket) -> None:
    global _noted
    numbers = {int(number) for number in _SIGNALS}
    while not numbers & set(receiver.recv(64)):
        pass
    _noted = True
    if _hint is not None:
        time.sleep(GRACE)
    _end()


def _end() -> None:
    """End the process without returning to what it does."""
    try:
        report("stopped", None if _hint is None else _hint())
        remove_unfinished()
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
    finally:
        os._exit(STOPPED)
