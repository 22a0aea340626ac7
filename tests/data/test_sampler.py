"""The order of images is a function of seed and epoch, on any number of processes, from any place."""

import pytest
import torch

from toolkit.bundle import Preprocessing
from toolkit.data import Batches, EpochSampler, load_pixels
from toolkit.data.shapes import shapes
from toolkit.errors import UsageError


def test_an_epoch_is_a_permutation_and_the_next_another() -> None:
    sampler = EpochSampler(50, seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    again = EpochSampler(50, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(EpochSampler(50, seed=4)) != first
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


def test_neighbouring_seeds_and_epochs_do_not_repeat_each_other() -> None:
    orders = set()
    for seed in range(5):
        sampler = EpochSampler(30, seed)
        orders |= {tuple(sampler) for _ in range(5)}
    assert len(orders) == 25


def test_an_interrupted_epoch_goes_on_where_it_stopped() -> None:
    whole = EpochSampler(20, seed=1)
    expected = [*whole, *whole]
    broken = EpochSampler(20, seed=1)
    seen = list(broken)
    for _, index in zip(range(7), broken, strict=False):
        seen.append(index)
    state = broken.state_dict()
    resumed = EpochSampler(20, seed=1)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert (state["epoch"], state["position"]) == (1, 7)
    assert [*seen, *resumed] == expected
    assert (resumed.epoch, resumed.position) == (2, 0)


def test_a_state_of_other_data_is_refused() -> None:
    state = EpochSampler(20, seed=1).state_dict()
    for other in (EpochSampler(21, seed=1), EpochSampler(20, seed=2), EpochSampler(20, 1, False), EpochSampler(20, 1, world=2)):
        with pytest.raises(UsageError, match="cannot resume"):
            other.load_state_dict(state)
    with pytest.raises(UsageError, match="no position 21"):
        EpochSampler(20).seek(0, 21)


@pytest.mark.parametrize("num_samples", [16, 17, 1, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_an_epoch(num_samples: int, world: int) -> None:
    ranks = [list(EpochSampler(num_samples, seed=1, rank=rank, world=world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert {index for rank in ranks for index in rank} == set(range(num_samples))
    together = [index for step in zip(*ranks, strict=True) for index in step]
    assert together[:num_samples] == list(EpochSampler(num_samples, seed=1))


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"num_samples": 2, "rank": 1, "world": 1}])
def test_impossible_samplers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="a sampler needs"):
        EpochSampler(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_cover_the_epoch_and_resume(drop_last: bool) -> None:
    pixels = load_pixels(shapes(20), Preprocessing(size_px=(8, 8)))
    whole = Batches(pixels, EpochSampler(20, seed=5), batch_size=6, drop_last=drop_last)
    epochs = [list(whole), list(whole)]
    assert [len(epoch) for epoch in epochs] == [len(whole)] * 2 == [3 if drop_last else 4] * 2
    for images, targets, indices in epochs[0]:
        assert torch.equal(images, pixels.images_NCHW[indices])
        assert torch.equal(targets, pixels.targets_N[indices])
    sampler = EpochSampler(20, seed=5)
    interrupted = iter(Batches(pixels, sampler, batch_size=6, drop_last=drop_last))
    for _ in range(2):
        next(interrupted)
    state = sampler.state_dict()
    resumed = EpochSampler(20, seed=5)
    resumed.load_state_dict(state)
    rest = [indices for _, _, indices in Batches(pixels, resumed, batch_size=6, drop_last=drop_last)]
    assert [i.tolist() for i in rest] == [indices.tolist() for _, _, indices in epochs[0][2:]]
    assert (resumed.epoch, resumed.position) == (1, 0)


def test_batches_refuse_a_sampler_of_other_data() -> None:
    pixels = load_pixels(shapes(20), Preprocessing(size_px=(8, 8)))
    with pytest.raises(UsageError, match="the sampler must cover the data"):
        Batches(pixels, EpochSampler(19), batch_size=4)
