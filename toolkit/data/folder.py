"""The user's own images: a directory a class, or a CSV that lists them.

Directory names starting with a dot are no classes (notebooks leave `.ipynb_checkpoints` behind), nor are files starting
with one images. Labels are sorted as strings, which is the order of torchvision's `ImageFolder`, so that the class indices of
older checkpoints still fit; `labels` sets another order.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from toolkit.data.decoding import EXTENSIONS
from toolkit.data.downloads import RemoteFile, remote_files
from toolkit.data.images import ImageSet, Sample, Split
from toolkit.data.listing import SPLIT_WORDS, Row, composed, read_listing
from toolkit.data.places import local_path
from toolkit.data.splits import with_splits
from toolkit.data.stored import Source
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

    `root` is a directory or a URL that fsspec knows (`s3://bucket/photos`), whose files are fetched once into a cache. The CSV
    has the columns path (relative to `root`) and label, and may have split and slice. A split that neither directories nor CSV
    give is taken from the training images, by class and slice, fixed by content and seed. `labels` sets the order of the
    classes (default: sorted). Raises `InputRefused` for a place without images, a class without any, rows that name no file,
    and labels that are not in `labels`; `EnvironmentProblem` for a store that refuses.
    """
    rows, place = _rows(root, csv)
    ordered = _ordered_labels(rows, labels, place)
    index_of = {label: k for k, label in enumerate(ordered)}
    samples = [
        Sample(key=row.key, target=index_of[row.label], split=row.split or "train", source=row.source, slice=row.slice)
        for row in rows
        if row.source is not None
    ]
    given: set[Split] = {row.split for row in rows if row.split is not None}
    return ImageSet(
        name=name or PurePosixPath(place).name,
        labels=ordered,
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, given=given),
    )


def _rows(root: Path | str, csv: Path | str | None) -> tuple[list[Row], str]:
    """The images and the place they lie in, in full; in order of names, each directory's files before its directories."""
    directory = local_path(root)
    if directory is None:
        place = str(root).rstrip("/")
        remote = dict(sorted(remote_files(place).items(), key=lambda item: _walked(item[0])))
        if csv is not None:
            return read_listing(_listing(csv, place), remote.get), place
        return _scan(remote, sorted({str(d) for name in remote for d in PurePosixPath(name).parents}), place), place
    place = directory.resolve().as_posix()
    if not directory.is_dir():
        raise InputRefused(f"{directory} is not a directory: give data.root=<directory of images>.")
    if csv is not None:
        return read_listing(_listing(csv, directory), lambda name: p if (p := directory / name).is_file() else None), place
    files: dict[str, Source] = {}
    directories = []
    for parent, names in _walk(directory):
        directories.append(parent.relative_to(directory).as_posix())
        files |= {(parent / name).relative_to(directory).as_posix(): parent / name for name in names}
    return _scan(files, directories, place), place


def _walked(name: str) -> list[tuple[bool, str]]:
    *parents, last = PurePosixPath(name).parts
    return [*((True, parent) for parent in parents), (False, last)]


def _listing(csv: Path | str, root: Path | str) -> Path | RemoteFile:
    """The list `csv`: a file or URL of its own, or a path below `root`."""
    path = local_path(csv)
    if path is not None and (path.is_absolute() or path.is_file()):
        return path
    directory = local_path(root)
    if path is not None and directory is not None:
        return directory / path
    url = str(csv) if path is None else f"{str(root).rstrip('/')}/{csv}"
    return next(iter(remote_files(url).values()))


def _ordered_labels(rows: Sequence[Row], labels: Sequence[str] | None, place: str) -> tuple[str, ...]:
    found = {row.label for row in rows}
    if labels is None:
        return tuple(sorted(found))
    given = tuple(composed(label) for label in labels)
    unknown = sorted(found - set(given))
    if unknown:
        raise InputRefused(
            f"{place} has images labelled {', '.join(unknown[:5])}, which data.labels={list(given)} does not name."
        )
    return given


def _scan(files: Mapping[str, Source], directories: Sequence[str], place: str) -> list[Row]:
    visible = [PurePosixPath(name) for name in directories if not any(_ignored(part) for part in PurePosixPath(name).parts)]
    top = [directory.name for directory in visible if len(directory.parts) == 1]
    kinds = Counter(SPLIT_WORDS.get(name.lower()) for name in top)
    depth = 1 if top and not kinds[None] and kinds["train"] else 0  # of the directory that names the class
    doubled = [kind for kind, count in kinds.items() if count > 1]
    if depth and doubled:
        raise InputRefused(f"{place} has several directories for the split '{doubled[0]}': keep one.")
    rows = []
    for name, source in files.items():
        parts = PurePosixPath(name).parts
        if len(parts) > depth + 1 and not any(map(_ignored, parts)) and PurePosixPath(name).suffix.lower() in EXTENSIONS:
            split = SPLIT_WORDS[parts[0].lower()] if depth else None
            rows.append(Row(key=name, source=source, label=composed(parts[depth]), split=split))
    if not rows:
        raise InputRefused(
            f"{place} holds no images in class directories. Expected {place}/<class>/<image> or "
            f"{place}/train/<class>/<image> with {', '.join(sorted(EXTENSIONS))}; or list them in a CSV (data.csv=...)."
        )
    classes = {composed(directory.name) for directory in visible if len(directory.parts) == depth + 1}
    empty = sorted(classes - {row.label for row in rows})
    if empty:
        raise InputRefused(
            f"{place}: no images in the class director{'y' if len(empty) == 1 else 'ies'} "
            f"{', '.join(empty)}. Add images or remove it."
        )
    return rows


def _walk(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    entered: set[str] = set()
    for place, children, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        children[:] = [] if real in entered else sorted(child for child in children if not _ignored(child))
        if real not in entered:
            entered.add(real)
            yield Path(place), sorted(name for name in names if not _ignored(name))


def _ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
