"""Which image goes to train, val or test: fixed by its content and a seed, stratified, and never parted from its duplicate.

Images are ranked by a hash of seed and content, not drawn in order: adding or renaming files moves only the few images at
the borders, so most of what was a test image for the model in service is one for its successor too. Images with equal
content go to one split together, because a copy in the training set turns a test image into a memory test.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace

from toolkit.data.images import Sample, Split, content_digests
from toolkit.errors import UsageError


def with_splits(
    samples: Sequence[Sample], *, val_fraction: float, test_fraction: float, seed: int, given: Collection[Split] = ()
) -> tuple[Sample, ...]:
    """The samples, their `train` part divided by class and slice; a split named in `given` is left as it is.

    Reads every file to hash it. Raises `UsageError` for impossible fractions.
    """
    _require_fractions(val_fraction, test_fraction)
    val_fraction = 0.0 if "val" in given else val_fraction
    test_fraction = 0.0 if "test" in given else test_fraction
    divided = [i for i, sample in enumerate(samples) if sample.split == "train"]
    if val_fraction + test_fraction == 0 or not divided:
        return tuple(samples)
    splits = assign_splits(
        content_digests([samples[i] for i in divided]),
        [(samples[i].target, samples[i].slice) for i in divided],
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    result = list(samples)
    for i, split in zip(divided, splits, strict=True):
        result[i] = replace(samples[i], split=split)
    return tuple(result)


def assign_splits(
    digests: Sequence[str], strata: Sequence[Hashable], *, val_fraction: float, test_fraction: float, seed: int
) -> list[Split]:
    """The split of each image, given its content digest and its stratum (for instance target and slice).

    Each stratum is divided into test, val and train by the fractions (0..1, together below 1), to the nearest image; where
    it has enough images, no split with a positive fraction is left empty. Raises `UsageError` for impossible fractions.
    """
    _require_fractions(val_fraction, test_fraction)
    members: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        members[digest].append(index)
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for digest, indices in members.items():
        groups[min((strata[i] for i in indices), key=repr)].append(digest)
    splits: list[Split] = ["train"] * len(digests)
    for stratum in groups.values():
        ranked = sorted(stratum, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest())
        num_images = sum(len(members[digest]) for digest in ranked)
        wanted_test, wanted_val = _counts(num_images, val_fraction, test_fraction)
        position = 0
        for digest in ranked:
            split: Split = "test" if position < wanted_test else "val" if position < wanted_test + wanted_val else "train"
            for index in members[digest]:
                splits[index] = split
            position += len(members[digest])
    return splits


def _counts(num_images: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    num_test, num_val = round(num_images * test_fraction), round(num_images * val_fraction)
    if num_images >= 3:
        num_test = max(num_test, 1) if test_fraction > 0 else 0
        num_val = max(num_val, 1) if val_fraction > 0 else 0
    return num_test, num_val


def _require_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise UsageError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be at least 0 and together below 1."
        )
