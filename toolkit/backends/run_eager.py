"""The model as torch runs it: the reference (float64), torch's own float32, and float32 with autocast around it.

The float64 runner works on a copy, because converting a module changes it for everyone who holds it. Logits always come back
as an array of the host, so a call ends when the device has answered.

Legend: N images, C channels, H height, W width, K labels.
"""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from toolkit.backends.devices import Device, torch_device, torch_settings
from toolkit.backends.number_formats import autocast_dtype
from toolkit.backends.runner import Runner, pixel_batch
from toolkit.bundle import Bundle
from toolkit.errors import UsageError
from toolkit.models import Deployed, restore

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class EagerRunner:
    """Runs `deployed` (pixels to logits) in `dtype`, in eval mode and without gradients, on `threads` threads (None: torch's).

    `autocast` (None: off) is the number format of its heavy operators, `device` cpu or cuda. The module stays as it was: a
    runner in another dtype, on another device, or of a module in training mode, works on a copy.
    """

    def __init__(
        self,
        deployed: nn.Module,
        *,
        dtype: Literal["float32", "float64"] = "float32",
        autocast: torch.dtype | None = None,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype is '{dtype}'; choose float32 or float64.")
        self.name = f"eager-{dtype}"
        self.dtype, self.autocast, self.device = DTYPES[dtype], autocast, torch_device(device)
        self.threads = threads
        tensors = [*deployed.parameters(), *deployed.buffers()]
        foreign = any(t.is_floating_point() and t.dtype != self.dtype for t in tensors) or device != "cpu"
        copied = foreign or deployed.training
        self.deployed = copy.deepcopy(deployed).to(self.device, self.dtype) if copied else deployed
        self.deployed.eval()

    @property
    def settings(self) -> dict[str, Any]:
        """How the numbers are computed, for the record."""
        return torch_settings(self.device) | {"autocast": str(self.autocast).removeprefix("torch.") if self.autocast else "off"}

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K), in the runner's dtype, of float32 pixels 0..255 (N, C, H, W)."""
        images = torch.from_numpy(pixel_batch(images_NCHW, name=self.name)).to(self.device, self.dtype)
        before = torch.get_num_threads()
        shortened = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        try:
            if self.threads:
                torch.set_num_threads(self.threads)
            with torch.inference_mode(), shortened:
                return self.deployed(images).to(self.dtype).cpu().numpy()
        finally:
            torch.set_num_threads(before)


def require_here(device: Device) -> None:
    """Raise `EnvironmentProblem` unless torch can compute on `device` here, `UsageError` for one that is not torch's."""
    torch_device(device)


def open_bundle(bundle: Bundle, *, precision: str = "fp32", device: Device = "cpu", threads: int | None = None) -> Runner:
    """The bundle's module behind its own preprocessing; in bf16 and fp16 through autocast, where the hardware has them."""
    require_here(device)
    autocast = autocast_dtype(precision, device=device)
    deployed = Deployed(restore(bundle), bundle.manifest.preprocessing)
    return EagerRunner(deployed, autocast=autocast, device=device, threads=threads)
