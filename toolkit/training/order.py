"""Which samples make up which batch of an epoch, on which process: a pure function of the seed and the epoch.

A run that is resumed, or shared by another number of processes, therefore sees the same batches with no state to keep.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from toolkit.data import EpochSampler, ShardOrder
from toolkit.errors import UsageError


def epoch_batches(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shards: ShardOrder | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[Tensor]:
    """The batches (indices_N) that process `rank` takes in epoch `epoch`, counted over all phases; near to `shards` if any.

    Every sample comes once, but for a last batch with fewer samples than processes, or a single one (no BatchNorm can
    train on it), which is dropped. Raises `UsageError` when nothing would be left.
    """
    sampler = EpochSampler(num_samples, seed)
    sampler.set_epoch(epoch)
    order_N = sampler.order() if shards is None else shards.order(batch_size=batch_size, seed=seed, epoch=epoch)
    batches_N = list(order_N.split(batch_size))
    if len(batches_N[-1]) < max(world_size, min(2, batch_size)):
        batches_N.pop()
    if not batches_N:
        raise UsageError(f"{num_samples} training images in batches of {batch_size} leave nothing for {world_size} processes")
    return [indices_N.tensor_split(world_size)[rank] for indices_N in batches_N]


def num_batches(num_samples: int, *, batch_size: int, world_size: int = 1) -> int:
    """How many batches `epoch_batches` gives."""
    full, rest = divmod(num_samples, batch_size)
    return full + (rest >= max(world_size, min(2, batch_size)))


class StepCounts:
    """Numbers of steps that add up to what `left` says is left of an epoch, each at most `most()`; anew at each start.

    This is the loader Lightning iterates over: it says how far to go, the learner knows where it is.
    """

    def __init__(self, left: Callable[[], int], most: Callable[[], int]) -> None:
        self._left, self._most = left, most

    def __iter__(self) -> Iterator[int]:
        left, most = self._left(), self._most()
        while left > 0:
            yield min(left, most)
            left -= most
