"""The model as torch runs it, on the CPU: the reference (float64) and torch's own float32.

The float64 runner works on a copy, because converting a module changes it for everyone who holds it.

Legend: N images, C channels, H height, W width, K labels.
"""

import copy
from typing import Literal

import numpy as np
import torch
from torch import nn

from toolkit.backends.runner import Runner, pixel_batch
from toolkit.bundle import Bundle
from toolkit.errors import UsageError
from toolkit.models import Deployed, restore

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class EagerRunner:
    """Runs `deployed` (pixels to logits) in `dtype`, in eval mode and without gradients, on `threads` threads (None: torch's).

    The module stays as it was: a runner in another dtype, or of a module in training mode, works on a copy.
    """

    def __init__(
        self, deployed: nn.Module, *, dtype: Literal["float32", "float64"] = "float32", threads: int | None = None
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype is '{dtype}'; choose float32 or float64.")
        self.name = f"eager-{dtype}"
        self.dtype = DTYPES[dtype]
        self.threads = threads
        foreign = any(p.dtype != self.dtype for p in (*deployed.parameters(), *deployed.buffers()) if p.is_floating_point())
        self.deployed = copy.deepcopy(deployed).to(self.dtype) if foreign or deployed.training else deployed
        self.deployed.eval()

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K), in the runner's dtype, of float32 pixels 0..255 (N, C, H, W)."""
        images = torch.from_numpy(pixel_batch(images_NCHW, name=self.name)).to(self.dtype)
        before = torch.get_num_threads()
        try:
            if self.threads:
                torch.set_num_threads(self.threads)
            with torch.inference_mode():
                return self.deployed(images).numpy()
        finally:
            torch.set_num_threads(before)


def open_bundle(bundle: Bundle, *, threads: int | None = None) -> Runner:
    """The bundle's module behind its own preprocessing."""
    return EagerRunner(Deployed(restore(bundle), bundle.manifest.preprocessing), threads=threads)
