"""The oldest versions that pyproject.toml allows, as constraints for pip: python scripts/minimum_versions.py > minimum.txt

``make test-minimum`` installs them and runs the tests, so that a lower bound is a promise and not a guess.
"""

import re
import sys
from pathlib import Path

EXTRAS = ("dependencies", "report")


def minimum_versions(text: str) -> list[str]:
    """``name==version`` of every lower bound in a pyproject.toml's dependencies and extra ``report``.

    Raises:
        ValueError: a requirement without a lower bound.
    """
    found = []
    for name in EXTRAS:  # tomllib is newer than the oldest Python that is supported
        for requirement in re.findall(r'"([^"]+)"', re.search(rf"^{name} = \[(.*?)\]", text, re.M | re.S)[1]):
            package, separator, version = requirement.partition(">=")
            if not separator:
                raise ValueError(f"{requirement} has no lower bound")
            found.append(f"{package}=={version}")
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(minimum_versions(Path("pyproject.toml").read_text(encoding="utf-8"))) + "\n")
