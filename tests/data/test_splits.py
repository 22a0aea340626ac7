"""Splits are fixed, stratified, keep copies together and hardly move when data is added."""

import hashlib
from collections import Counter

import pytest

from toolkit.data.splits import assign_splits
from toolkit.errors import UsageError


def _digests(num: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(start, start + num)]


def test_fractions_hold_in_every_stratum() -> None:
    strata = [("a", "x")] * 100 + [("a", "y")] * 40 + [("b", "x")] * 20
    splits = assign_splits(_digests(160), strata, val_fraction=0.15, test_fraction=0.25, seed=0)
    counts = Counter(zip(strata, splits, strict=True))
    for stratum, num in (("a", "x"), 100), (("a", "y"), 40), (("b", "x"), 20):
        assert [counts[stratum, split] for split in ("train", "val", "test")] == [num * 0.6, num * 0.15, num * 0.25]


def test_the_seed_and_nothing_else_changes_the_split() -> None:
    digests, strata = _digests(200), ["a"] * 200

    def split(seed: int, digests: list[str] = digests) -> dict[str, str]:
        assigned = assign_splits(digests, strata, val_fraction=0.2, test_fraction=0.2, seed=seed)
        return dict(zip(digests, assigned, strict=True))

    assert split(0) == split(0, digests[::-1])
    assert split(0) != split(1)


def test_copies_stay_together_even_with_different_labels() -> None:
    digests = _digests(100) * 2
    splits = assign_splits(digests, ["a"] * 100 + ["b"] * 100, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert splits[:100] == splits[100:]
    assert Counter(splits)["test"] == 40


def test_new_images_move_few_old_ones() -> None:
    before = assign_splits(_digests(1000), ["a"] * 1000, val_fraction=0.15, test_fraction=0.25, seed=0)
    after = assign_splits(_digests(1500), ["a"] * 1500, val_fraction=0.15, test_fraction=0.25, seed=0)
    assert sum(old != new for old, new in zip(before, after, strict=False)) < 50


def test_small_classes_reach_every_split() -> None:
    splits = assign_splits(_digests(3), ["rare"] * 3, val_fraction=0.1, test_fraction=0.1, seed=0)
    assert sorted(splits) == ["test", "train", "val"]
    assert assign_splits(_digests(1), ["rare"], val_fraction=0.4, test_fraction=0.4, seed=0) == ["train"]


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (1.0, 0.0)])
def test_impossible_fractions_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="together below 1"):
        assign_splits(_digests(4), ["a"] * 4, val_fraction=val, test_fraction=test, seed=0)
