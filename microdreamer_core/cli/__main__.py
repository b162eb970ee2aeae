"""``python -m microdreamer_core.cli``: the console command ``microdreamer`` where it is not on the path."""

from .main import main

if __name__ == "__main__":
    raise SystemExit(main())
