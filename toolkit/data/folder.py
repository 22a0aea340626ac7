"""The user's own images: a directory a class, or a CSV that lists them.

Directory names starting with a dot are no classes (notebooks leave `.ipynb_checkpoints` behind), nor are files starting
with one images. Labels are sorted as strings, which is the order of torchvision's `ImageFolder`, so that the class indices of
older checkpoints still fit; `labels` sets another order.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.data.decoding import EXTENSIONS
from toolkit.data.images import ImageSet, Sample, Split
from toolkit.data.listing import SPLIT_WORDS, Row, composed, read_listing
from toolkit.data.splits import with_splits
from toolkit.errors import InputRefused


def folder(
    root: Path | str,
    *,
    csv: Path | str | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> ImageSet:
    """Images under `root`: `<class>/**`, or `<train|val|test>/<class>/**`, or as `csv` lists them.

    The CSV has the columns path (relative to `root`) and label, and may have split and slice. A split that neither
    directories nor CSV give is taken from the training images, by class and slice, fixed by content and seed. `labels` sets
    the order of the classes (default: sorted). Raises `InputRefused` for a place without images, a class without any, rows
    that name no file, and labels that are not in `labels`.
    """
    directory = Path(root).expanduser()
    if not directory.is_dir():
        raise InputRefused(f"{directory} is not a directory: give data.root=<directory of images>.")
    rows = read_listing(_csv_path(directory, csv), directory) if csv is not None else _scan(directory)
    ordered = _ordered_labels(rows, labels, directory)
    index_of = {label: k for k, label in enumerate(ordered)}
    samples = [
        Sample(key=row.key, target=index_of[row.label], split=row.split or "train", source=row.path, slice=row.slice)
        for row in rows
    ]
    given: set[Split] = {row.split for row in rows if row.split is not None}
    return ImageSet(
        name=name or directory.resolve().name,
        labels=ordered,
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, given=given),
    )


def _csv_path(directory: Path, csv: Path | str) -> Path:
    path = Path(csv).expanduser()
    return path if path.is_absolute() or path.is_file() else directory / path


def _ordered_labels(rows: Sequence[Row], labels: Sequence[str] | None, directory: Path) -> tuple[str, ...]:
    found = {row.label for row in rows}
    if labels is None:
        return tuple(sorted(found))
    given = tuple(composed(label) for label in labels)
    unknown = sorted(found - set(given))
    if unknown:
        raise InputRefused(
            f"{directory} has images labelled {', '.join(unknown[:5])}, which data.labels={list(given)} does not name."
        )
    return given


def _scan(directory: Path) -> list[Row]:
    children = _directories(directory)
    splits = [child for child in children if child.name.lower() in SPLIT_WORDS]
    kinds = Counter(SPLIT_WORDS[child.name.lower()] for child in splits)
    if splits and len(splits) == len(children) and kinds["train"]:
        doubled = [kind for kind, count in kinds.items() if count > 1]
        if doubled:
            raise InputRefused(f"{directory} has several directories for the split '{doubled[0]}': keep one.")
        rows = [row for split in splits for row in _classes(directory, split, SPLIT_WORDS[split.name.lower()])]
    else:
        rows = _classes(directory, directory, None)
    if not rows:
        raise InputRefused(
            f"{directory} holds no images in class directories. Expected {directory}/<class>/<image> or "
            f"{directory}/train/<class>/<image> with {', '.join(sorted(EXTENSIONS))}; or list them in a CSV (data.csv=...)."
        )
    empty = sorted({composed(child.name) for child in _class_directories(directory, splits)} - {row.label for row in rows})
    if empty:
        raise InputRefused(
            f"{directory}: no images in the class director{'y' if len(empty) == 1 else 'ies'} "
            f"{', '.join(empty)}. Add images or remove it."
        )
    return rows


def _class_directories(directory: Path, splits: Sequence[Path]) -> list[Path]:
    return [child for split in splits for child in _directories(split)] or _directories(directory)


def _classes(directory: Path, parent: Path, split: Split | None) -> list[Row]:
    return [
        Row(key=path.relative_to(directory).as_posix(), path=path, label=composed(child.name), split=split)
        for child in _directories(parent)
        for path in _images(child)
    ]


def _directories(parent: Path) -> list[Path]:
    return sorted(child for child in parent.iterdir() if child.is_dir() and not _ignored(child.name))


def _images(directory: Path) -> Iterator[Path]:
    entered: set[str] = set()
    for place, children, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        children[:] = [] if real in entered else sorted(child for child in children if not _ignored(child))
        if real in entered:
            continue
        entered.add(real)
        for name in sorted(names):
            if not _ignored(name) and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(place) / name


def _ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
