"""Images in tar shards, as WebDataset writes them, on this machine or in an object store.

Each shard is indexed once; then its images are a data set like any other, checked, split and fingerprinted as such. Only the
order of training is another one, so that shards are read from end to end by few processes each: see `shard_order`.
"""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from toolkit.data.downloads import RemoteFile, remote_files
from toolkit.data.images import ImageSet, Sample, Split
from toolkit.data.listing import SPLIT_WORDS, composed
from toolkit.data.places import local_path
from toolkit.data.shard_order import Shuffle
from toolkit.data.splits import with_splits
from toolkit.data.tar_index import Entry, Member, index
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused, UsageError

LABELS = "labels.txt"
Shard = Path | RemoteFile


def shards(
    root: Path | str,
    *,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    buffer: int = 4096,
    lanes: int = 8,
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> ImageSet:
    """Images in the tars of `root`: a directory or URL, or a pattern such as `s3://bucket/train-{0000..0007}.tar` or `*.tar`.

    A sample is `key.jpg` (or another image) with `key.cls` (a class number or name) or `key.json` ({"label", and if wanted
    "split", "slice", "key"}). A shard's split is the first word of its name or its directory's (`val-0003.tar`, `val/3.tar`);
    missing ones are taken from the training images. Class numbers are named by `labels`, or by the lines of `labels.txt` beside
    the shards. `lanes` shards are read side by side (best a multiple of the processes), `buffer` images of a lane mixed.

    Raises `InputRefused` where there are no shards, some of a pattern are missing, or one is not a whole plain tar of samples;
    `EnvironmentProblem` for a store that refuses.
    """
    found, beside = _shards(str(root))
    entries = list(map_in_threads(index, list(found.values()), description="Reading shards"))
    rows = [(shard, entry) for shard, of_shard in zip(found, entries, strict=True) for entry in of_shard]
    if not rows:
        raise InputRefused(f"{root}: the shards hold no samples.")
    ordered = _ordered_labels(rows, labels, beside, str(root))
    index_of = {label: k for k, label in enumerate(ordered)}
    numbered = {str(k): k for k in range(len(ordered))}
    splits: list[Split | None] = [_split(shard, entry) for shard, entry in rows]
    samples = [
        Sample(
            key=entry.key or f"{shard.removesuffix('.tar')}/{PurePosixPath(entry.name)}",
            target=index_of[composed(entry.label)] if composed(entry.label) in index_of else numbered[entry.label],
            split=split or "train",
            source=Member(found[shard], entry.name, entry.start, entry.length, entry.sha256),
            slice=entry.slice,
        )
        for (shard, entry), split in zip(rows, splits, strict=True)
    ]
    given: set[Split] = {split for split in splits if split is not None}
    return ImageSet(
        name=name or PurePosixPath(_fixed(str(root))).name or "shards",
        labels=ordered,
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, given=given),
        shuffle=Shuffle(buffer, lanes),
    )


def _shards(root: str) -> tuple[dict[str, Shard], Shard | None]:
    """The shards by name, in order of names, and the file of label names beside them."""
    found: dict[str, Shard] = {}
    beside: Shard | None = None
    for place in expanded(root):
        parent, pattern = _parts(place)
        files = _listed(parent)
        beside = beside or files.get(LABELS)
        chosen = {name: file for name, file in files.items() if fnmatch.fnmatchcase(name, pattern)}
        if not chosen:
            packed = [name for name in files if re.search(r"\.(tgz|tar\.\w+)$", name)]
            hint = f"{packed[0]} is compressed: unpack it to a plain .tar." if packed else "Give a folder, a URL or a pattern."
            raise InputRefused(f"{place}: there is no shard (.tar) of this name. {hint}")
        found |= {f"{parent}/{name}": file for name, file in chosen.items()}
    fixed = _fixed(root)
    return {name.removeprefix(f"{fixed}/"): file for name, file in sorted(found.items())}, beside


def _fixed(root: str) -> str:
    """The directory that all shards of `root` lie in, as far as the pattern says."""
    plain = re.split(r"[{*]", root.rstrip("/"))[0]
    return plain if plain == root.rstrip("/") and not plain.endswith(".tar") else _parts(f"{plain}*")[0]


def _parts(place: str) -> tuple[str, str]:
    """The directory of a place and the names meant in it; a directory means all tars below it."""
    parent, _, last = place.rstrip("/").rpartition("/")
    if last.endswith(".tar") or "*" in last:
        return parent or ("/" if place.startswith("/") else "."), last
    return place, "*.tar"


def _listed(place: str) -> dict[str, Shard]:
    directory = local_path(place)
    if directory is None:
        return dict(remote_files(place))
    if not directory.is_dir():
        raise InputRefused(f"{directory} is not a directory: give data.root=<directory, URL or pattern of .tar shards>.")
    return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}


def expanded(pattern: str) -> Iterator[str]:
    """The places that a pattern with braces means: `{0000..0007}` counts, `{a,b}` lists. Raises `UsageError` for others."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise UsageError(f"data.root={pattern}: a brace is not closed. Write {{0000..0007}} or {{a,b}}.")
        yield pattern
        return
    inner = match[1]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if counted is not None:
        words = [f"{i:0{len(counted[1])}d}" for i in range(int(counted[1]), int(counted[2]) + 1)]
    else:
        words = inner.split(",") if "," in inner else []
    if not words:
        raise UsageError(f"data.root={pattern}: '{{{inner}}}' means no shards. Write {{0000..0007}} or {{a,b}}.")
    for word in words:
        yield from expanded(pattern[: match.start()] + word + pattern[match.end() :])


def _split(shard: str, entry: Entry) -> Split | None:
    if entry.split:
        if entry.split.lower() not in SPLIT_WORDS:
            raise InputRefused(f"{shard}: {entry.name} has the split '{entry.split}'; write train, val or test.")
        return SPLIT_WORDS[entry.split.lower()]
    path = PurePosixPath(shard)
    words = [re.split(r"[^a-z]", part.lower())[0] for part in (path.name, path.parent.name)]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _ordered_labels(
    rows: Sequence[tuple[str, Entry]], labels: Sequence[str] | None, beside: Shard | None, root: str
) -> tuple[str, ...]:
    found = {composed(entry.label) for _, entry in rows}
    numbers = all(label.isascii() and label.isdigit() for label in found)
    if labels is None and beside is not None:
        content = beside.read() if isinstance(beside, RemoteFile) else beside.read_bytes()
        labels = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    if labels is None:
        return tuple(str(k) for k in range(max(map(int, found)) + 1)) if numbers else tuple(sorted(found))
    given = tuple(composed(label) for label in labels)
    known = {*given, *(map(str, range(len(given))) if numbers else ())}
    unknown = sorted(found - known)
    if unknown:
        raise InputRefused(
            f"{root} has samples of the classes {', '.join(unknown[:5])}, which the labels {list(given)} do not name "
            f"(data.labels=..., or {LABELS} beside the shards, one name a line)."
        )
    return given
