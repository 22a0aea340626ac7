"""The order of training images that lie in shards: random enough to learn from, near enough to the shards' own to be read.

Shards are dealt to lanes, once for a seed, so that each process keeps reading its own; a batch takes equally many images from
each lane, so that a process whose share of the batch is whole lanes opens no other's shards. Within a lane the shards come in
an order drawn for the epoch, and each image moves at most `buffer` places forward in its lane. What is left of the longer lanes
comes last, mixed. All of it is a function of seed, epoch and batch size, whatever the number of processes: a run that is
resumed needs no state, and two processes see the batches of one.

Shapes: N images, S shards.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import LongTensor, Tensor

from toolkit.errors import UsageError


@dataclass(frozen=True)
class Shuffle:
    """How far images move (`buffer`, in images of a lane; 0: not at all), how many shards are read side by side (`lanes`)."""

    buffer: int = 4096
    lanes: int = 8

    def __post_init__(self) -> None:
        if self.buffer < 0 or self.lanes < 1:
            raise UsageError(f"buffer must be at least 0 and lanes at least 1; got {self.buffer} and {self.lanes}.")


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Which shard each image lies in (0..S-1, images of a shard in its order), and how they are shuffled."""

    shard_N: LongTensor
    shuffle: Shuffle

    def take(self, indices_N: Tensor) -> "ShardOrder":
        """The same for the images at `indices_N`."""
        return ShardOrder(self.shard_N[indices_N], self.shuffle)  # pyright: ignore[reportArgumentType]

    def order(self, *, batch_size: int, seed: int, epoch: int) -> LongTensor:
        """The indices of all images, int64 (N,), as epoch `epoch` takes them in batches of `batch_size`."""
        shard_N = self.shard_N.numpy()
        counts = np.unique(shard_N, return_counts=True)[1]
        members = np.split(np.argsort(shard_N, kind="stable"), np.cumsum(counts)[:-1])
        lanes = _dealt(members, self._num_lanes(batch_size, len(members)), seed)
        streams = [self._stream([members[s] for s in lane], seed, epoch, number) for number, lane in enumerate(lanes)]
        share = batch_size // len(streams)
        num_rounds = min(len(stream) for stream in streams) // share
        even = np.stack([stream[: num_rounds * share].reshape(num_rounds, share) for stream in streams], axis=1)
        rest = np.concatenate([stream[num_rounds * share :] for stream in streams])
        _generator(seed, epoch, len(streams)).shuffle(rest)
        return torch.from_numpy(np.concatenate([even.reshape(-1), rest]))  # pyright: ignore[reportReturnType]

    def _num_lanes(self, batch_size: int, num_shards: int) -> int:
        """As many as wanted, but a divisor of the batch and no more than there are shards."""
        most = math.gcd(self.shuffle.lanes, batch_size)
        return max(number for number in range(1, most + 1) if most % number == 0 and number <= num_shards)

    def _stream(self, shards: list[np.ndarray], seed: int, epoch: int, lane: int) -> np.ndarray:
        generator = _generator(seed, epoch, lane)
        stream = np.concatenate([shards[s] for s in generator.permutation(len(shards))])
        places = np.arange(len(stream)) + self.shuffle.buffer * generator.random(len(stream))
        return stream[np.argsort(places, kind="stable")]


def _dealt(members: list[np.ndarray], num_lanes: int, seed: int) -> list[list[int]]:
    """The shards of each lane: in random order, each to the lane that holds the fewest images so far."""
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    held = [0] * num_lanes
    for shard in np.random.default_rng((seed, 0)).permutation(len(members)):
        least = held.index(min(held))
        lanes[least].append(int(shard))
        held[least] += len(members[shard])
    return lanes


def _generator(seed: int, epoch: int, lane: int) -> np.random.Generator:
    return np.random.default_rng((seed, 1, epoch, lane))
