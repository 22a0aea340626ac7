"""The order of training images: a function of seed and epoch, so that an interrupted run goes on where it stopped.

A sampler that draws from the global generator cannot be resumed without replaying it. This one holds two integers, epoch
and position; any process that knows them continues with the same images in the same order. `Batches` slices a resident
data set by it: one index operation a batch, no workers, no collation.

Shapes: N images of the data set, B of a batch.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import LongTensor, Tensor
from torch.utils.data import Sampler

from toolkit.data.pixels import Pixels
from toolkit.errors import UsageError


class EpochSampler(Sampler[int]):
    """Indices 0..num_samples-1, in an order fixed by `seed` and the epoch (ascending without `shuffle`).

    Process `rank` of `world` gets every world-th index, so that the processes' batches together are one process's batch; the
    order wraps to its beginning so that all get equally many. Iterating moves `position` (in samples of this rank) and, at
    the end, on to the next epoch. A reader that fetches ahead of the training step must `seek` to what was trained on before it
    takes `state_dict`.
    """

    def __init__(self, num_samples: int, seed: int = 0, shuffle: bool = True, *, rank: int = 0, world: int = 1) -> None:
        if num_samples < 1 or not 0 <= rank < world:
            raise UsageError(f"a sampler needs num_samples >= 1 and 0 <= rank < world; got {num_samples}, {rank}, {world}.")
        self.num_samples, self.seed, self.shuffle, self.rank, self.world = num_samples, seed, shuffle, rank, world
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """The number of samples of a whole epoch on this rank."""
        return -(-self.num_samples // self.world)

    def order(self) -> LongTensor:
        """This rank's indices of the current epoch from its beginning, int64 (`len(self)`,)."""
        if self.shuffle:
            mixed = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            order_N = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(mixed))
        else:
            order_N = torch.arange(self.num_samples)
        missing = len(self) * self.world - self.num_samples
        wrapped = order_N.repeat(-(-missing // self.num_samples))[:missing] if missing else order_N[:0]
        return torch.cat((order_N, wrapped))[self.rank :: self.world]  # pyright: ignore[reportReturnType]

    def __iter__(self) -> Iterator[int]:
        for index in self.order()[self.position :].tolist():
            self.position += 1
            yield index
        self.next_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; within the current epoch the position stays (so that a resumed one goes on)."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.seek(self.epoch + 1, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to `position` (samples of this rank already used) of `epoch`. Raises `UsageError` outside it."""
        if epoch < 0 or not 0 <= position <= len(self):
            raise UsageError(f"there is no position {position} in epoch {epoch} of {len(self)} samples a process.")
        self.epoch, self.position = epoch, position

    def state_dict(self) -> dict[str, int]:
        """The place to go on from, and what it must fit: plain integers."""
        fixed = {"num_samples": self.num_samples, "seed": self.seed, "shuffle": int(self.shuffle), "world": self.world}
        return {"epoch": self.epoch, "position": self.position, **fixed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved place. Raises `UsageError` when it was saved for other data, seed or number of processes."""
        own = self.state_dict()
        for name in ("num_samples", "seed", "shuffle", "world"):
            if state.get(name) != own[name]:
                raise UsageError(
                    f"cannot resume: the interrupted run had {name} = {state.get(name)}, this one has {own[name]}. "
                    "Resume with the data and settings of the interrupted run, or start anew."
                )
        self.seek(state["epoch"], state["position"])


class Batches:
    """Batches of resident pixels in the order of a sampler: (images uint8 (B, C, H, W), targets (B,), indices (B,)).

    All three lie on the device of `pixels`. Iterating goes on from the sampler's place and moves it; the last, smaller batch
    of an epoch is left out with `drop_last`.
    """

    def __init__(self, pixels: Pixels, sampler: EpochSampler, *, batch_size: int, drop_last: bool = False) -> None:
        if batch_size < 1 or sampler.num_samples != len(pixels):
            raise UsageError(
                f"batch_size must be at least 1 and the sampler must cover the data; got batch_size {batch_size}, "
                f"a sampler of {sampler.num_samples} and {len(pixels)} images."
            )
        self.pixels, self.sampler, self.batch_size, self.drop_last = pixels, sampler, batch_size, drop_last

    def __len__(self) -> int:
        """The number of batches of a whole epoch on this rank."""
        whole = len(self.sampler) // self.batch_size
        return whole if self.drop_last or len(self.sampler) % self.batch_size == 0 else whole + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        sampler, pixels = self.sampler, self.pixels
        order_N = sampler.order()[sampler.position :].to(pixels.images_NCHW.device)
        for indices_B in order_N.split(self.batch_size):
            if self.drop_last and len(indices_B) < self.batch_size:
                break
            sampler.position += len(indices_B)
            yield pixels.images_NCHW[indices_B], pixels.targets_N[indices_B], indices_B
        sampler.next_epoch()
