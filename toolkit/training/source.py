"""Where a feed's pixels lie: on the device as a whole, or on the host, from where batches are fetched before they are needed.

What the device can hold is indexed there. What it cannot hold, or what is decoded at each use, is read by a thread of its own
while the device works on the batches before, into pinned memory, so that the copy too runs beside the computation.

Shapes: N samples, C channels, H height, W width (pixels).
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from toolkit.data import Images, Pixels, Undecoded
from toolkit.training.transfer import Indices, sent

NUM_PREPARED = 32  # batches whose files are fetched from a store before they are read
NUM_AHEAD = 3  # batches read before they are asked for: one in use by a slow reader, one waiting, one being copied


class Source(Protocol):
    """Hands out images, uint8 (N, C, H, W), on the device."""

    def expect(self, batches: Sequence[Indices]) -> None:
        """Say which batches will be asked for next, in order."""
        ...

    def take(self, batch: Indices) -> Tensor:
        """The images of `batch`."""
        ...


class Resident:
    """Images that lie on the device: a batch is one index operation."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self.images_NCHW = images_NCHW

    def expect(self, batches: Sequence[Indices]) -> None:
        """Nothing to prepare."""

    def take(self, batch: Indices) -> Tensor:
        return self.images_NCHW.index_select(0, batch.here_N)  # on the CPU several times as fast as brackets


class Ahead:
    """Images that `read` (indices_N to uint8 NCHW, on the host) fetches in a thread, up to `num` expected batches ahead.

    `prepare` is told of the batches after those, so that what they need is on the way.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        device: torch.device,
        *,
        num: int = NUM_AHEAD,
        prepare: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.read, self.device, self.num, self.prepare = read, device, num, prepare
        self._unprepared: deque[Indices] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images-ahead")
        self._expected: deque[Indices] = deque()
        self._coming: deque[tuple[Indices, Future[Tensor]]] = deque()

    def expect(self, batches: Sequence[Indices]) -> None:
        for _, future in self._coming:
            future.cancel()
        self._coming.clear()
        self._expected = deque(batches)
        self._unprepared = deque(batches if self.prepare is not None else ())
        self._fill()

    def take(self, batch: Indices) -> Tensor:
        if self._coming and self._coming[0][0] is batch:
            images_NCHW = self._coming.popleft()[1].result()
            self._fill()
        else:
            images_NCHW = self._fetch(batch.host_N)
        return images_NCHW.to(self.device, non_blocking=True)

    def _fill(self) -> None:
        while self.prepare is not None and len(self._unprepared) > max(0, len(self._expected) - NUM_PREPARED):
            self.prepare(self._unprepared.popleft().host_N)
        while self._expected and len(self._coming) < self.num:
            batch = self._expected.popleft()
            self._coming.append((batch, self._thread.submit(self._fetch, batch.host_N)))

    def _fetch(self, indices_N: Tensor) -> Tensor:
        images_NCHW = self.read(indices_N)
        return images_NCHW.pin_memory() if self.device.type == "cuda" else images_NCHW


def source_of(images: Images, device: torch.device, *, share: float = 0.4) -> Source:
    """Images on the device when they are decoded and take at most `share` of its free memory; else read ahead."""
    if not isinstance(images, Pixels):
        return Ahead(images.read, device, prepare=images.prepare if isinstance(images, Undecoded) else None)
    if device.type != "cuda":
        return Resident(images.images_NCHW.to(device))
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if images.images_NCHW.nbytes <= share * free_bytes:
        return Resident(sent(images.images_NCHW, device))
    return Ahead(images.read, device)
