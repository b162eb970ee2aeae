"""Prints the share of mutants that the tests kill, by module, and every survivor; exits 1 below the wanted share.

Usage: python scripts/mutation_score.py, after `mutmut run` (`make mutants` does both). `mutmut show NAME` shows a survivor.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict

WANTED = 0.85
KILLED = {"killed", "timeout", "segfault"}


def main() -> int:
    listing = subprocess.run(
        [sys.executable, "-m", "mutmut", "results", "--all", "true"], capture_output=True, text=True, check=True
    )
    outcomes = dict(line.strip().rsplit(": ", 1) for line in listing.stdout.splitlines() if "__mutmut_" in line)
    modules: dict[str, Counter[bool]] = defaultdict(Counter)
    for name, outcome in outcomes.items():
        modules[name.rsplit(".", 1)[0]][outcome in KILLED] += 1
        if outcome not in KILLED:
            sys.stdout.write(f"{outcome}: {name}\n")
    whole = sum(modules.values(), Counter[bool]())
    for name, counts in [*sorted(modules.items()), ("all", whole)]:
        sys.stdout.write(f"{counts[True]:5d} of {counts.total():5d} killed, {counts[True] / counts.total():6.1%}  {name}\n")
    return int(whole[True] < WANTED * whole.total())


if __name__ == "__main__":
    raise SystemExit(main())
