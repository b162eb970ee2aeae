"""README and docs: short, linked, current, and their code runs.

Every fenced `sh` and `python` block says in an HTML comment above it how far it is tested:

- `<!-- test: run -->`: executed in this process, in an empty folder with the samples, one block of a page after the other. What
  would take long is small: one iteration (`iterations=20` becomes 1, `--iterations 1` is added), small meshes and films, an
  untrained small network in place of the included one.
- `<!-- test: parse -->`: commands of `microdreamer` go through its argument parser; targets of `make` and programs of the
  repository must exist.
- `<!-- not run: why -->`: its grammar alone is checked.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import architecture
import pytest
import site_pages

from helpers.small_batch import WorkerThread
from helpers.small_model import small_load
from microdreamer_core.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LEVELS = ("test: run", "test: parse", "not run: ")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<level>[^\n]*?) -->\n)?^```(?P<language>sh|python)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
_SHORT = ("--iterations", "1", "--faces", "300", "--texture-size", "64")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    level: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line} {self.language} {self.level}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each line, without comments."""
        words = (shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in words if line]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: match.start("text")].count("\n"), match["level"] or "", match["language"], match["text"])
        for match in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def at(level: str) -> list:
    return [pytest.param(block, id=block.name) for block in BLOCKS if block.level.startswith(level)]


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS])
def test_a_block_says_how_it_is_tested_and_is_well_formed(block):
    assert block.level.startswith(LEVELS)
    if block.language == "python":
        ast.parse(block.text)
    elif sys.platform != "win32" and shutil.which("bash"):
        assert subprocess.run(["bash", "-n"], input=block.text, text=True).returncode == 0


def test_no_block_is_overlooked():
    fences = sum(len(re.findall(r"^```(?:sh|python)$", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == len(BLOCKS) > 20
    assert {level for level in LEVELS if at(level)} == set(LEVELS)


@pytest.mark.parametrize("block", at("test: parse"))
def test_commands_exist_with_their_options(block):
    for program, *arguments in block.commands:
        if Path(program).name == "microdreamer":
            assert callable(cli._parser().parse_args(arguments).run)
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(arguments) <= set(targets), arguments
        else:
            assert Path(program).name in ("python", "pre-commit"), program
            assert all((ROOT / word).is_file() for word in arguments if word.endswith(".py"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Page -> the folder in which its blocks run."""
    made = {}

    def folder(page: Path) -> Path:
        if page not in made:
            made[page] = tmp_path_factory.mktemp(page.stem)
            shutil.copytree(ROOT / "samples", made[page] / "samples")
        return made[page]

    return folder


@pytest.fixture
def small(monkeypatch):
    """What would take long is small."""
    from microdreamer_core import api
    from microdreamer_core.diffusion.embedded.model import EmbeddedModel
    from microdreamer_core.job import outputs
    from microdreamer_core.meshing.settings import MeshSettings
    from microdreamer_core.util import processes

    monkeypatch.setattr(processes, "WorkerProcess", WorkerThread)
    monkeypatch.setattr(EmbeddedModel, "load", small_load())
    monkeypatch.setattr(outputs, "FILM_FRAMES", 8)
    monkeypatch.setattr(outputs, "FILM_SIZE", 32)
    monkeypatch.setitem(api.image_to_3d.__kwdefaults__, "mesh", MeshSettings(target_faces=300, texture_size=64))


@pytest.mark.parametrize("block", at("test: run"))
def test_a_block_runs(block, folders, small, monkeypatch, capsys):
    monkeypatch.chdir(folders(block.page))
    if block.language == "python":
        text = re.sub(r"\biterations=\d+", "iterations=1", block.text)
        exec(compile(text, block.name, "exec"), {"__name__": "__main__"})
        return
    for program, *arguments in block.commands:
        assert program == "microdreamer"
        short = (
            _SHORT[2:] if arguments[0] in ("resume", "mesh") else _SHORT if arguments[0].endswith(("-to-3d", "batch")) else ()
        )
        assert cli.main([*arguments, *short]) == cli.DONE, capsys.readouterr().err


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def anchors_of(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.+)$",
        re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), f"{target}#{anchor}"


def test_every_page_is_listed_in_the_readme_and_the_index():
    for index in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        linked = {(index.parent / target).resolve() for target, _ in _LINK.findall(index.read_text(encoding="utf-8")) if target}
        missing = {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "index.md"} - linked
        assert not missing, index


def test_every_command_is_described():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (choices,) = (action.choices for action in cli._parser()._actions if action.dest == "command")
    assert not [name for name in choices if f"microdreamer {name}" not in page]


def test_every_package_is_described_and_the_drawing_is_current():
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.draw_page() == page, "run scripts/architecture.py"
    assert not [name for name in architecture.package_arrows() if f"**{name}**" not in page]


def test_arrows_that_follow_from_others_are_left_out():
    assert architecture.reduce_arrows({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_pages_of_the_site_keep_their_links():
    places = site_pages.addresses()
    moved = site_pages.move_links(
        "[a](../web/docs/X.md) [b](cli.md#c) [d](https://e.f/g.md)",
        "docs/comfyui.md",
        {**places, "web/docs/X.md": "nodes/X.md"},
    )
    assert moved == "[a](nodes/X.md) [b](cli.md#c) [d](https://e.f/g.md)"
    assert site_pages.move_links("[a](docs/cli.md)", "CONTRIBUTING.md", places) == "[a](cli.md)"


def test_the_site_has_a_page_for_every_package():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"reference/\w+\.md", text)) == set(site_pages.reference_pages())
    assert "\ndocs_dir: outputs/pages\n" in text


FORMS = sorted((ROOT / ".github").rglob("*.yml")) + [ROOT / ".pre-commit-config.yaml"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml_with_what_github_wants(path):
    content = pytest.importorskip("yaml").safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert True in content, "'on' is a truth value to YAML 1.1"
        for job in content["jobs"].values():
            assert job["runs-on"] and all("uses" in step or "run" in step for step in job["steps"])
    elif path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= set(content)
        assert "microdreamer doctor" in str(content["body"])


def test_pages_are_built_as_make_docs_builds_them():
    yaml = pytest.importorskip("yaml")
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))["jobs"]["build"]["steps"]
    commands = [step["run"].split()[:2] for step in steps if "run" in step]
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    made = [line.strip().removeprefix("$(BIN)/").split()[:2] for line in recipe[1].splitlines()]
    assert commands[-len(made) :] == made


def test_the_suite_runs_on_three_systems_with_every_python():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert len(matrix["os"]) == 3 and matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert sys.version_info >= (3, 10)
