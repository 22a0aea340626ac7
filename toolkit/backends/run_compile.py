"""The model as `torch.compile` runs it: inductor, with the weights frozen into the program.

Freezing folds BatchNorm into its convolution and lays the weights out once. It is sound here because a runner's weights never
change. Shapes are compiled as they come (`dynamic=False`): each new batch size costs its own compilation, in its first call.
Inductor writes C++ on the CPU (and C for the launcher of its GPU kernels), so a compiler must be on the machine.

Legend: N images, C channels, H height, W width, K labels.
"""

import os
import shutil
import sys
from typing import Any, cast

import numpy as np
import torch
import torch._inductor.compile_fx
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from toolkit.backends.devices import Device, torch_device
from toolkit.backends.number_formats import autocast_dtype
from toolkit.backends.run_eager import EagerRunner
from toolkit.backends.runner import Runner
from toolkit.bundle import Bundle
from toolkit.errors import EnvironmentProblem
from toolkit.models import Deployed, restore

OPTIONS = {"freezing": True, "compile_threads": 1}  # one: a pool of compiling processes would outlive the call


class CompiledRunner:
    """`deployed` (pixels to logits) compiled by inductor; the arguments are `EagerRunner`'s.

    Raises `EnvironmentProblem` where there is no compiler, and in the first call where it cannot compile.
    """

    def __init__(
        self,
        deployed: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        self.compiler = require_compiler()
        self.runner = EagerRunner(deployed, autocast=autocast, device=device, threads=threads)
        self.runner.deployed = cast(nn.Module, torch.compile(self.runner.deployed, dynamic=False, options=OPTIONS))
        self.runner.name = self.name = "compile-float32"

    @property
    def settings(self) -> dict[str, Any]:
        """How the numbers are computed, for the record."""
        return self.runner.settings | {f"inductor_{k}": v for k, v in OPTIONS.items()} | {"compiler": self.compiler}

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K) of float32 pixels 0..255 (N, C, H, W); the first call of a batch size compiles."""
        try:
            return self.runner(images_NCHW)
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = next((line for line in lines if "error" in line.lower()), lines[0] if lines else type(error).__name__)
            raise EnvironmentProblem(
                f"torch.compile could not compile the model with {self.compiler}: {said[:300]}. It needs a working C++ "
                "compiler and Python's headers (on Debian and Ubuntu: apt-get install g++ python3-dev), or leave "
                "out runner compile."
            ) from error


def require_compiler() -> str:
    """The path of the C++ compiler inductor will call. Raises `EnvironmentProblem`, naming the one that is missing."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    found = shutil.which(name)
    if found is None:
        raise EnvironmentProblem(
            f"runner compile needs a C++ compiler, and '{name}' is not on the PATH. Install one (on Debian and Ubuntu: apt-get "
            "install g++), or set CXX to the one you have."
        )
    return found


def require_here(device: Device) -> None:
    """Raise `EnvironmentProblem` unless torch can compile for `device` here, `UsageError` for one that is not torch's."""
    torch_device(device)
    require_compiler()


def open_bundle(bundle: Bundle, *, precision: str = "fp32", device: Device = "cpu", threads: int | None = None) -> Runner:
    """The bundle's module behind its own preprocessing, to be compiled in the first call."""
    require_here(device)
    autocast = autocast_dtype(precision, device=device)
    deployed = Deployed(restore(bundle), bundle.manifest.preprocessing)
    return CompiledRunner(deployed, autocast=autocast, device=device, threads=threads)
