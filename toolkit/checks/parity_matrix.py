"""Every way a graph may be run: execution provider, onnxruntime's optimiser level, batch size.

An export bug, a fusion bug and a provider's kernel bug are different failures, so the optimiser runs off, basic and all, on
each provider that this machine has. On Ampere and later cards TF32 shortens the mantissa of float32 products to 10 bits;
onnxruntime's CUDA provider has it on by default, torch's matrix products do not. The floor is that of true float32, so the
runs held against it have TF32 off; a run with TF32 on is measured beside them and not judged.

Legend: N images, C channels, H height, W width, K labels.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from toolkit.backends import OnnxRunner
from toolkit.backends.noise import in_batches
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError

Level = Literal["off", "basic", "all"]
LEVELS: tuple[Level, ...] = ("off", "basic", "all")
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """Execution providers, the preferred one first, under one `name`; `tf32`: whether they may compute in TF32."""

    name: str
    providers: tuple[tuple[str, dict[str, str]], ...]
    levels: tuple[Level, ...] = LEVELS
    tf32: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """The graph's answers on one device at one optimiser level and batch size, or why it would not run there."""

    device: Device
    level: Level
    batch: int
    logits_NK: np.ndarray | None
    refusal: str = ""

    @property
    def runtime(self) -> str:
        """The name for measurements: `onnxruntime_all` on the CPU, `onnxruntime_all_cuda` elsewhere."""
        return f"onnxruntime_{self.level}" + ("" if self.device.name == CPU else f"_{self.device.name}")

    @property
    def finite(self) -> bool:
        """Whether every answer is a number."""
        return self.logits_NK is not None and bool(np.isfinite(self.logits_NK).all())


def devices_here() -> list[Device]:
    """The devices whose execution provider is part of the installed onnxruntime; the CPU is one everywhere.

    TensorRT optimises by itself, so one level is enough there, and uses TF32 unless `NVIDIA_TF32_OVERRIDE=0` is set.
    """
    cpu = ("CPUExecutionProvider", {})
    known = (
        Device(CPU, (cpu,)),
        Device("cuda", (("CUDAExecutionProvider", {"use_tf32": "0"}), cpu)),
        Device("cuda_tf32", (("CUDAExecutionProvider", {"use_tf32": "1"}), cpu), ("all",), tf32=True),
        Device(
            "tensorrt",
            (("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {"use_tf32": "0"}), cpu),
            ("all",),
            tf32=os.environ.get("NVIDIA_TF32_OVERRIDE") != "0",
        ),
    )
    present = onnxruntime.get_available_providers()
    return [device for device in known if device.providers[0][0] in present]


def run_matrix(
    path: Path, images_NCHW: np.ndarray, *, batches: Sequence[int], num_labels: int, devices: Sequence[Device] | None = None
) -> tuple[list[Outcome], dict[str, str]]:
    """Run the graph at `path` on every device (None: all that are here), level and batch size.

    Returns the outcomes, and why a device could not be used (its provider is installed, its hardware or libraries are not).
    Raises `InputRefused` for a graph that cannot be loaded.
    """
    outcomes: list[Outcome] = []
    unusable: dict[str, str] = {}
    for device in devices_here() if devices is None else devices:
        try:
            outcomes += _on_device(path, images_NCHW, batches, num_labels, device)
        except EnvironmentProblem as problem:
            unusable[device.name] = str(problem)
    return outcomes, unusable


def _on_device(
    path: Path, images_NCHW: np.ndarray, batches: Sequence[int], num_labels: int, device: Device
) -> Iterator[Outcome]:
    for level in device.levels:
        runner = OnnxRunner(path, threads=1, optimisation=level, providers=device.providers)
        for batch in batches:
            try:
                logits_NK = in_batches(runner, images_NCHW, batch)
            except (InputRefused, UsageError) as refusal:  # a baked-in batch is refused by the input's declared shape
                yield Outcome(device, level, batch, None, str(refusal))
                continue
            fits = logits_NK.shape == (len(images_NCHW), num_labels)
            shape = f"{len(images_NCHW)} images gave logits of shape {list(logits_NK.shape)}; the model has {num_labels} labels"
            yield Outcome(device, level, batch, logits_NK if fits else None, "" if fits else shape)
