"""Errors shown to users: each message says what was expected, what was found and how to fix it."""


class InputError(ValueError):
    """Input that cannot be used; the message is written for the user and needs no traceback."""


class NumericalError(RuntimeError):
    """A value became NaN or infinite; the message names the iteration and the stage."""


class Cancelled(Exception):
    """The caller cancelled the run; results that were yielded before it remain valid."""


def out_of_memory(error: BaseException) -> bool:
    """Return True if ``error`` reports exhausted memory, which torch marks by type on accelerators, by message on the CPU.

    >>> out_of_memory(MemoryError()), out_of_memory(ValueError("no"))
    (True, False)
    """
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
