"""Packages that only some functions need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..errors import InputError


def import_optional(module: str, need: str, install: str) -> ModuleType:
    """Import a module of an optional package.

    >>> import_optional("json", "Saved states need", "json").__name__
    'json'

    Args:
        need: what needs it, with the verb, for the message. install: arguments of pip.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{need} {package}, which is not installed; run: pip install {install}.") from error
