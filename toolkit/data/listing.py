"""The CSV that lists images: columns path and label, and if wanted split and slice.

Written by spreadsheets as often as by programs, so a byte-order mark and `;` or tab between the columns are taken as they come;
everything else that is odd is refused with its line number, because a shifted column trains a wrong model without a word.
"""

import csv
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.downloads import RemoteFile
from toolkit.data.images import Split
from toolkit.data.stored import Source
from toolkit.errors import InputRefused

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
COLUMNS = ("path", "label", "split", "slice")


@dataclass(frozen=True)
class Row:
    """One listed image; `split` is None where the list gives none, `label` is in Unicode normal form C."""

    key: str
    source: Source | None
    label: str
    split: Split | None = None
    slice: str = ""


def read_listing(path: Path | RemoteFile, find: Callable[[str], Source | None]) -> list[Row]:
    """The images that the CSV file `path` lists; `find` gives the file of a listed path, None where there is none.

    Raises `InputRefused`, naming the line, for missing columns, empty cells, another split than train, val and test, a path
    listed twice, and files that are not there.
    """
    try:
        content = path.read() if isinstance(path, RemoteFile) else path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} cannot be read as UTF-8 text ({error}): give data.csv=<file>.") from error
    delimiter = next((mark for mark in (",", ";", "\t") if lines and mark in lines[0]), ",")
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"path", "label"} <= set(columns):
        raise InputRefused(
            f"{path} has the columns {columns}; the first line must name path and label (and may name split and slice)."
        )
    reader.fieldnames = columns
    rows = [_row(path, reader.line_num, cells) for cells in reader]
    if not rows:
        raise InputRefused(f"{path} lists no images: add lines of path,label.")
    _require_unique(path, rows)
    sources = [find(row.key) for row in rows]
    missing = [row.key for row, source in zip(rows, sources, strict=True) if source is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputRefused(f"{path} lists {len(missing)} files that are not there: {shown}. Paths are relative to data.root.")
    return [replace(row, source=source) for row, source in zip(rows, sources, strict=True)]


def composed(name: str) -> str:
    """`name` in Unicode normal form C: macOS writes `é` as two code points, and a label must be the same on every machine."""
    return unicodedata.normalize("NFC", name)


def _row(path: Path | RemoteFile, number: int, cells: dict[str, str | None]) -> Row:
    values = {name: (cells.get(name) or "").strip() for name in COLUMNS}
    where = f"{path}, line {number}"
    if None in cells or not values["path"] or not values["label"]:
        raise InputRefused(f"{where}: needs a path and a label, and no more cells than there are columns.")
    split = SPLIT_WORDS.get(values["split"].lower())
    if split is None and "split" in cells:
        raise InputRefused(f"{where}: the split is '{values['split']}'; write train, val or test, or leave the column out.")
    return Row(values["path"], None, composed(values["label"]), split, values["slice"])


def _require_unique(path: Path | RemoteFile, rows: list[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.key in seen:
            raise InputRefused(f"{path} lists {row.key} twice: remove one of the lines.")
        seen.add(row.key)
