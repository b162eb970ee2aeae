"""Entry point of ``python -m microdreamer_core.cli``, for where the command ``microdreamer`` is not on the path."""

from .entry import main

if __name__ == "__main__":
    raise SystemExit(main())
