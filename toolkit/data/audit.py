"""What is wrong with a data set, before anybody trains on it.

Every image is decoded once. Copies are found by their pixels, not their bytes, so a re-saved file is still a copy; a copy of a
test image among the training images makes every later number too good. Findings that make a result meaningless are
problems (training refuses them), the others are warnings (it says them).
"""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.data.decoding import decode
from toolkit.data.images import SPLITS, ImageSet, Sample
from toolkit.data.stored import Source, Stored
from toolkit.data.threads import map_in_threads
from toolkit.errors import InputRefused


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `fatal` when no result could be trusted."""

    message: str
    fatal: bool


@dataclass(frozen=True)
class Audit:
    """The findings: `problems` forbid training, `warnings` do not; the rest is the evidence behind them.

    `counts[split][label]` images; `unreadable` pairs of key and reason; `leaked` groups of equal images in more than one split,
    `repeated` within one, `contradicting` with different labels (each image as `split:label:key`).
    """

    name: str
    num_images: int
    counts: dict[str, dict[str, int]]
    unreadable: tuple[tuple[str, str], ...]
    leaked: tuple[tuple[str, ...], ...]
    repeated: tuple[tuple[str, ...], ...]
    contradicting: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """The audit as JSON-ready dictionaries and lists."""
        return asdict(self)


def audit(
    images: ImageSet,
    *,
    expected_labels: Sequence[str] | None = None,
    max_unreadable: float = 0.01,
    max_leaked: float = 0.01,
) -> Audit:
    """Check every image and the splits. `expected_labels`: the labels of the bundle that these images go through, in order.

    Problems: no images; more than the share `max_unreadable` (0..1) unreadable; a class without images in train or val (in
    test: a warning); more than the share `max_leaked` of a split's images also in another split; labels that differ.
    """
    results = list(map_in_threads(_pixel_digest, images.samples, description=f"Checking {images.name}"))
    unreadable = tuple((s.key, error) for s, (_, error) in zip(images.samples, results, strict=True) if error)
    groups = _equal_images(images, [digest for digest, _ in results])
    leaked = [group for group in groups if len({sample.split for sample in group}) > 1]
    repeated = [group for group in groups if len({sample.split for sample in group}) == 1]
    contradicting = [group for group in groups if len({sample.target for sample in group}) > 1]
    counts = _counts(images)
    findings = [
        *_unreadable_finding(images, unreadable, max_unreadable),
        *_class_findings(counts),
        *_leak_finding(images, leaked, max_leaked),
        *_label_finding(images, expected_labels),
        *_copy_finding(images, repeated, "images are copies within their split"),
        *_copy_finding(images, contradicting, "equal images have different labels"),
    ]
    return Audit(
        name=images.name,
        num_images=len(images),
        counts=counts,
        unreadable=unreadable,
        leaked=_named(images, leaked),
        repeated=_named(images, repeated),
        contradicting=_named(images, contradicting),
        problems=tuple(finding.message for finding in findings if finding.fatal),
        warnings=tuple(finding.message for finding in findings if not finding.fatal),
    )


def require_sound(found: Audit) -> None:
    """Raises `InputRefused` listing the problems of an audit, if it has any."""
    if found.problems:
        listed = "\n".join(f"  - {problem}" for problem in found.problems)
        raise InputRefused(f"data '{found.name}' cannot be used:\n{listed}")


def pixel_digests(images: ImageSet) -> list[int | None]:
    """The first 64 bits of the sha256 of each image's pixels, as a signed integer; None for one that cannot be read."""
    found = map_in_threads(_pixel_digest, images.samples, description=f"Comparing {images.name}")
    return [int(digest[:16], 16) - (1 << 63) if digest else None for digest, _ in found]


def _pixel_digest(sample: Sample) -> tuple[str, str]:
    source = sample.source
    if isinstance(source, Path) and source.is_file():
        status = source.stat()
        return _file_pixel_digest(source, status.st_size, status.st_mtime_ns)
    return _decoded_digest(source)


@functools.lru_cache(maxsize=1 << 20)
def _file_pixel_digest(path: Path, num_bytes: int, modified_ns: int) -> tuple[str, str]:
    """Kept while the file is unchanged: the stages of one run audit the same data again and again."""
    return _decoded_digest(path)


def _decoded_digest(source: Source) -> tuple[str, str]:
    try:
        return _kept_digest(source) if isinstance(source, Stored) else _digest_of(source), ""
    except InputRefused as error:
        return "", str(error)


@functools.lru_cache(maxsize=1 << 20)
def _kept_digest(source: Stored) -> str:
    return _digest_of(source)


def _digest_of(source: Source) -> str:
    image = decode(source)
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def _equal_images(images: ImageSet, digests: Sequence[str]) -> list[list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample, digest in zip(images.samples, digests, strict=True):
        if digest:
            groups[digest].append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _counts(images: ImageSet) -> dict[str, dict[str, int]]:
    counted = Counter((sample.split, sample.target) for sample in images.samples)
    return {split: {label: counted[split, k] for k, label in enumerate(images.labels)} for split in SPLITS}


def _unreadable_finding(images: ImageSet, unreadable: Sequence[tuple[str, str]], limit: float) -> Iterator[Finding]:
    if unreadable:
        reasons = "; ".join(reason for _, reason in unreadable[:5]) + ("; ..." if len(unreadable) > 5 else "")
        message = f"{len(unreadable)} of {len(images)} images cannot be read: {reasons}"
        yield Finding(message, fatal=len(unreadable) > limit * len(images))


def _class_findings(counts: dict[str, dict[str, int]]) -> Iterator[Finding]:
    for split, by_label in counts.items():
        absent = [label for label, count in by_label.items() if not count]
        if len(absent) == len(by_label):
            yield Finding(f"the split {split} has no images: add some, or change the fractions.", fatal=split != "test")
        elif absent:
            shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            message = f"the split {split} has no image of {shown}: add some, merge the classes, or change fractions or seed."
            yield Finding(message, fatal=split != "test")


def _leak_finding(images: ImageSet, leaked: Sequence[Sequence[Sample]], limit: float) -> Iterator[Finding]:
    if leaked:
        sizes = Counter(sample.split for sample in images.samples)
        in_split = Counter(sample.split for group in leaked for sample in group)
        worst = max(in_split, key=lambda split: in_split[split] / sizes[split])
        share = in_split[worst] / sizes[worst]
        message = (
            f"{_number(leaked)} images appear in more than one split ({share:.1%} of {worst}), so their results are too good, "
            f"e.g. {_shown(images, leaked[0])}. Remove the copies, or let the toolkit split."
        )
        yield Finding(message, fatal=share > limit)


def _label_finding(images: ImageSet, expected: Sequence[str] | None) -> Iterator[Finding]:
    if expected is None or tuple(expected) == images.labels:
        return
    missing, added = sorted(set(expected) - set(images.labels)), sorted(set(images.labels) - set(expected))
    if missing or added:
        yield Finding(f"its labels are not the bundle's: missing {missing}, additional {added}.", fatal=True)
    else:
        message = (
            f"its labels are the bundle's in another order ({list(images.labels)}, not {list(expected)}): every class would "
            "count as another. Set data.labels to the bundle's order."
        )
        yield Finding(message, fatal=True)


def _copy_finding(images: ImageSet, groups: Sequence[Sequence[Sample]], what: str) -> Iterator[Finding]:
    if groups:
        yield Finding(f"{_number(groups)} {what}, e.g. {_shown(images, groups[0])}.", fatal=False)


def _named(images: ImageSet, groups: Sequence[Sequence[Sample]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{s.split}:{images.labels[s.target]}:{s.key}" for s in group) for group in groups)


def _shown(images: ImageSet, group: Sequence[Sample]) -> str:
    names = _named(images, [group])[0]
    return " = ".join(names[:3])


def _number(groups: Sequence[Sequence[Sample]]) -> int:
    return sum(len(group) for group in groups)
