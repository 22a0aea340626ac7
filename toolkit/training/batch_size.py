"""The batch size `auto`: the largest power of two whose step fits into memory and still leaves a phase enough steps.

Found by trying: whole steps, everything unfrozen, doubled until the device refuses. On the CPU the system grants memory it does
not have and kills whoever uses it, so there the memory of a step is foretold from what autograd keeps of two images.
Found once, it is a number like any other: it stands in the recipe, and a resumed run reads it from its directory.
"""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from toolkit.bundle import Preprocessing
from toolkit.data.placing import free_bytes
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.training.options import FitOptions
from toolkit.training.trainer import TrainerSpec

LARGEST = 512
LEAST_STEPS_AN_EPOCH = 16
SHARE_OF_MEMORY = 0.5
RUN = "run.json"

logger = logging.getLogger(__name__)


def settled(
    options: FitOptions,
    net: nn.Module,
    *,
    preprocessing: Preprocessing,
    num_train: int,
    trainer: TrainerSpec,
    resume: Path | None = None,
) -> FitOptions:
    """`options` with a number for `batch_size`: as it is, as the run in `resume` had it, or found by trying `net`.

    `num_train` training images bound it: an epoch keeps at least 16 steps. Raises `EnvironmentProblem` when not even two
    images fit, `UsageError` for a sharded net.
    """
    if options.batch_size != "auto":
        return options
    if trainer.strategy == "fsdp":
        raise UsageError("options.batch_size=auto tries the whole net on one device; with strategy=fsdp give a number")
    if resume is not None:
        return replace(options, batch_size=_before(resume))
    most = max(2, min(LARGEST, num_train // LEAST_STEPS_AN_EPOCH))
    found = find_batch_size(net, preprocessing, trainer=trainer, most=most)
    logger.info("batch_size=auto: %d images a step.", found)
    return replace(options, batch_size=found)


def find_batch_size(net: nn.Module, preprocessing: Preprocessing, *, trainer: TrainerSpec, most: int) -> int:
    """The largest power of two up to `most` (at least 2) that a training step of a copy of `net` has memory for."""
    device = torch.device(trainer.device_type)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        trial = copy.deepcopy(net).to(device).train().requires_grad_(True)
        optimiser = torch.optim.AdamW(trial.parameters())
        if not _fits(trial, optimiser, _images(2, preprocessing, device), trainer):
            raise EnvironmentProblem(
                f"Not even two images fit into the memory of {device}: take a smaller model or image size."
            )
        if device.type == "cpu":
            an_image = kept_bytes_an_image(trial, preprocessing, trainer=trainer)
            most = min(most, int(SHARE_OF_MEMORY * free_bytes() / max(1, an_image)))
        found = 2
        while 2 * found <= most and _fits(trial, optimiser, _images(2 * found, preprocessing, device), trainer):
            found *= 2
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a device or on the host."""
    host = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return host or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _fits(net: nn.Module, optimiser: torch.optim.Optimizer, images_NCHW: Tensor, trainer: TrainerSpec) -> bool:
    try:
        _loss(net, images_NCHW, trainer).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if images_NCHW.device.type == "cuda":
            torch.cuda.synchronize()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        if images_NCHW.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def kept_bytes_an_image(net: nn.Module, preprocessing: Preprocessing, *, trainer: TrainerSpec) -> int:
    """What autograd keeps of one image for the backward pass of `net`, from a forward pass of two."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    device = next(net.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _loss(net, _images(2, preprocessing, device), trainer)
    return sum(size for place, size in kept.items() if place not in weights) // 2


def _loss(net: nn.Module, images_NCHW: Tensor, trainer: TrainerSpec) -> Tensor:
    with torch.autocast(images_NCHW.device.type, trainer.autocast_dtype, enabled=trainer.autocast_dtype is not None):
        found: Any = net(images_NCHW)
    logits_NK = found if isinstance(found, Tensor) else found[0]
    return logits_NK.float().square().mean()


def _images(size: int, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    return torch.randn(size, preprocessing.num_channels, *preprocessing.size_px, device=device)


def _before(run_dir: Path) -> int:
    try:
        return int(yaml.safe_load(json.loads((run_dir / RUN).read_bytes())["options"])["options"]["batch_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRefused(f"{run_dir} holds no run to resume (no readable {RUN}). Give the directory of a run.") from error
