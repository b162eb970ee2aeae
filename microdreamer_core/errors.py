"""The errors that users meet: each message says what was expected, what came and how to mend it."""


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence for the user, no traceback is needed."""


class NumericalError(RuntimeError):
    """A NaN or an infinity arose; the message names the iteration and the stage."""


class Cancelled(Exception):
    """The caller asked to stop; what was finished before is kept by whoever catches this."""


def out_of_memory(error: BaseException) -> bool:
    """torch says it with subclasses of RuntimeError on accelerators, and in words alone on the CPU."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
