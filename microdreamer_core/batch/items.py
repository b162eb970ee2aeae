"""What a batch makes: a folder of images, or a CSV table of images, prompts and options."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.pictures import list_picture_files
from ..sir.plan import SIRPlan
from ..util.readable import shorten_name
from ..util.settings import parse_assignments

TEXTS = ("model", "preset", "representation", "negative", "nerf_size")
NUMBERS: dict[str, type] = {"seed": int, "elevation": float}
"""Columns beside ``picture``, ``mask``, ``prompt``, ``name`` and the plan's fields."""

_OWN = ("picture", "mask", "prompt", "name")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Item:
    """One asset to make.

    Attributes:
        name: unique in the batch, a file name; picture: None for a prompt alone.
        prompt: None for the .txt beside the picture, if there is one.
        options: what differs from the batch's own choices, by the name of the choice.
    """

    name: str
    picture: Path | None = None
    mask: Path | None = None
    prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Name of the picture, or the prompt."""
        return self.picture.name if self.picture is not None else self.prompt or ""


def read_items(source: Path, *, free: bool = False) -> tuple[Item, ...]:
    """Read what to make: the images of a folder, or the rows of a .csv.

    Args:
        free: allow any columns and keep their values as text, for the inputs of a ComfyUI workflow.

    Raises:
        InputError: neither, or nothing in it, or a row that says nothing or something unknown.
    """
    if source.suffix.lower() == ".csv":
        items = list(_read_rows(source, free))
    elif source.is_dir():
        items = [Item(path.stem, path) for path in list_picture_files(source)]
    else:
        raise InputError(f"A batch is made from a folder of pictures or a .csv, got {source}; check the path.")
    if not items:
        raise InputError(f"{source.name} has no rows; give each object a row below the names of the columns.")
    return tuple(_with_unique_names(items))


def _read_rows(source: Path, free: bool) -> Iterator[Item]:
    try:
        text = source.read_text(encoding="utf-8-sig")
        rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
        columns = [(name or "").strip() for name in rows.fieldnames or ()]
        lines = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source.name} cannot be read as a table ({error}); save it as CSV with commas, in UTF-8.") from error
    known = [*_OWN, *NUMBERS, *TEXTS, *(one.name for one in dataclasses.fields(SIRPlan) if one.name != "name")]
    if unknown := [name for name in columns if not name or (not free and name not in known)]:
        raise InputError(f"{source.name} has an unknown column {unknown[0]!r}; choose from {', '.join(known)}.")
    if not {"picture", "prompt"} & set(columns):
        raise InputError(f"{source.name} needs a column 'picture' or 'prompt' in its first line, got {', '.join(columns)}.")
    for line, row in lines:
        cells = list(row.values())
        if None in row or None in cells:
            raise InputError(f"Line {line} of {source.name} has more or fewer cells than columns; quote those with commas.")
        values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()}
        if values:
            yield _parse_row(values, source, line, free)


def _parse_row(values: dict[str, str], source: Path, line: int, free: bool) -> Item:
    picture, mask, prompt, name = (values.pop(column, None) for column in _OWN)
    if picture is None and prompt is None:
        raise InputError(f"Line {line} of {source.name} has neither a picture nor a prompt; give one.")
    try:
        options = values if free else {key: value for column, text in values.items() for key, value in _parse(column, text)}
    except (ValueError, InputError) as error:
        raise InputError(f"Line {line} of {source.name} cannot be used: {error}") from error
    where = None if picture is None else source.parent / picture
    name = name or (where.stem if where is not None else "-".join(re.findall(r"\w+", (prompt or "").lower())))
    return Item(name, where, None if mask is None else source.parent / mask, prompt, options)


def _parse(column: str, text: str) -> Iterable[tuple[str, Any]]:
    if column in TEXTS:
        return [(column, text)]
    if column in NUMBERS:
        return [(column, NUMBERS[column](text))]
    return parse_assignments(SIRPlan, [f"{column}={text}"]).items()


def _with_unique_names(items: list[Item]) -> Iterator[Item]:
    """Make names that every file system takes, and number those that repeat (file systems may ignore case)."""
    seen: Counter[str] = Counter()
    for item in items:
        name = plain = shorten_name(re.sub(r"[^\w.\- ]+", "_", item.name).strip(". ") or "object", _LONGEST_NAME)
        while seen[name.casefold()]:
            seen[plain.casefold()] += 1
            name = f"{plain}-{seen[plain.casefold()]}"
        seen[name.casefold()] += 1
        yield replace(item, name=name)
