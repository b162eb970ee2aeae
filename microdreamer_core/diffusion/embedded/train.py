"""The former name of the command ``python -m microdreamer_core.training.train``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("microdreamer_core.training.train", run_name="__main__", alter_sys=True)
