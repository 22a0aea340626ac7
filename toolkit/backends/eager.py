"""PyTorch, eager mode: the reference every other runtime is compared with.

Shapes: N images, C channels, H height, W width (pixels), K labels.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn


class EagerRunner:
    """Runs a deployed module (float32 pixels 0..255 in, logits out) in `dtype` on the CPU.

    The module is copied and put into eval mode, so the caller's stays as it is. `threads` None keeps PyTorch's setting.
    """

    def __init__(
        self, deployed: nn.Module, *, dtype: Literal["float32", "float64"] = "float32", threads: int | None = None
    ) -> None:
        self.dtype = torch.float64 if dtype == "float64" else torch.float32
        self.name = "torch" if dtype == "float32" else "torch float64"
        self.module = copy.deepcopy(deployed).to("cpu", self.dtype).eval()
        self.threads = threads

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """logits_NK of float32 pixels images_NCHW, in the runner's dtype."""
        with torch.inference_mode(), torch_threads(self.threads):
            return self.module(torch.from_numpy(np.ascontiguousarray(images_NCHW)).to(self.dtype)).numpy()


@contextlib.contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Run the block with `number` intra-op threads (None: as set), then restore the setting."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
