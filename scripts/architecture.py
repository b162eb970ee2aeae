"""Draws which package of the core imports which, from the code, into docs/architecture.md.

    python scripts/architecture.py

Arrows that follow from others are left out: when sir imports render and render imports util, none goes from sir to util.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "microdreamer_core"
PAGE = ROOT / "docs" / "architecture.md"
_DRAWING = re.compile(r"(?<=<!-- drawing -->\n).*?(?=<!-- /drawing -->)", re.DOTALL)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(CORE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Modules of the core that a module imports, at its top or inside of functions, but for type checking alone."""
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    checked_only = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in checked_only:
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        target = ".".join([*base, *([node.module] if node.module else [])])
        found |= {f"{target}.{alias.name}" if f"{target}.{alias.name}" in MODULES else target for alias in node.names}
    return {target for target in found if target in MODULES and target != name and target != CORE.name}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def package_of(module: str) -> str:
    return module.split(".")[1]


def package_arrows() -> dict[str, set[str]]:
    """Package or single module at the top of the core -> those that it imports."""
    arrows: dict[str, set[str]] = {package_of(name): set() for name in MODULES if name != CORE.name}
    for name in MODULES:
        if name != CORE.name:
            arrows[package_of(name)] |= {package_of(target) for target in imported_modules(name)} - {package_of(name)}
    return arrows


def reduce_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The fewest arrows from which all paths of a graph without circles follow."""
    reached: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reached:
            reached[name] = set().union(*({target} | reach(target) for target in arrows[name]))
        return reached[name]

    return {name: {t for t in targets if not any(t in reach(u) for u in targets)} for name, targets in arrows.items()}


def drawing() -> str:
    """The graph of packages as Mermaid text; those without an arrow into them stand at the top."""
    arrows = reduce_arrows(package_arrows())
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'  {name}["{name}"]' if _is_package(name) else f"  {name}([{name}.py])" for name in sorted(arrows)]
    lines += [f"  {name} --> {target}" for name in sorted(arrows) for target in sorted(arrows[name])]
    return "\n".join([*lines, "```", ""])


def _is_package(name: str) -> bool:
    return (CORE / name / "__init__.py").is_file()


def draw_page() -> str:
    """The page with the drawing as the code is now."""
    return _DRAWING.sub(lambda _: drawing(), PAGE.read_text(encoding="utf-8"))


def main() -> None:
    page = draw_page()
    if page != PAGE.read_text(encoding="utf-8"):
        PAGE.write_text(page, encoding="utf-8")
        sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
