"""The former name of the command ``python -m microdreamer_core.training.evaluate``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("microdreamer_core.training.evaluate", run_name="__main__", alter_sys=True)
