"""The type of callbacks that long computations call between their steps."""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[], None]
"""Called before a step; raises (usually ``errors.Cancelled``) to stop the computation."""
