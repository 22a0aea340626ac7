"""Whether to train through torch.compile, `auto`: only where a trial says that this run is long enough to earn the start back.

Compiling takes from half a minute to several and gave 0.7 to 1.1 times the speed on CPUs, more on GPUs. So a run of some
minutes is not tried. Else steps of a copy are timed with and without; what was found is kept for the machine, the decision is
each run's. It changes results by rounding, so a resumed run keeps the one it began with.
"""

import copy
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.backends.op_latency import cache_directory
from toolkit.bundle import Preprocessing
from toolkit.bundle.atomic import write_atomic
from toolkit.errors import EnvironmentProblem
from toolkit.training import processes
from toolkit.training.layout import BATCH, ROUNDS, step, trial_key
from toolkit.training.schedule import Schedule
from toolkit.training.trainer import TrainerSpec

COMPILE = "compile.json"
WORTH_TRYING_S = 600.0
"""Seconds of steps below which a trial, which compiles too, costs more than it could find."""

logger = logging.getLogger(__name__)


def with_compile(
    trainer: TrainerSpec, net: nn.Module, preprocessing: Preprocessing, *, steps: Mapping[int, int], run_dir: Path, resume: bool
) -> TrainerSpec:
    """`trainer` with true or false for `compile`: as it is, as the run to resume had it, or as a trial on copies of `net` says.

    `trainer` has its layout; `steps`: the batch size, and the steps with it through the whole net (see `planned`). Processes
    that train together could disagree and do not compile.
    """
    if trainer.compile != "auto":
        return trainer
    kept = run_dir / COMPILE
    if resume and kept.is_file():
        return replace(trainer, compile=bool(json.loads(kept.read_bytes())["compile"]))
    chosen = trainer.strategy == "auto" and any(_pays(trainer, net, preprocessing, *plan) for plan in steps.items())
    if processes.is_first():
        write_atomic(kept, json.dumps({"compile": chosen}).encode())
    return replace(trainer, compile=chosen)


def planned(schedule: Schedule, *, num_batches: int, cached: bool) -> int:
    """The steps of `schedule` that go through the whole net, where head-only phases may be `cached`."""
    through = [phase for phase in schedule.phases if not (cached and phase.depth == 0)]
    return num_batches * sum(phase.epochs for phase in through)


def trial(net: nn.Module, trainer: TrainerSpec, shape: tuple[int, ...]) -> dict[str, float]:
    """Seconds of a training step on a batch of `shape` (N, C, H, W), `plain` and `compiled`, and of compiling, `start`."""
    device = torch.device(trainer.device_type)
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    layout = torch.channels_last if trainer.channels_last is True else torch.contiguous_format
    with torch.random.fork_rng(devices=cuda):
        copied: Any = copy.deepcopy(net).to(device).train().requires_grad_(True)
        copied = copied.to(memory_format=layout)
        images_NCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
        step(copied, images_NCHW, trainer)  # picks its kernels
        contenders, started = {"plain": copied, "compiled": torch.compile(copied)}, time.perf_counter()
        step(contenders["compiled"], images_NCHW, trainer)
        found = {"start": time.perf_counter() - started, "plain": float("inf"), "compiled": float("inf")}
        for _ in range(ROUNDS):
            for name, contender in contenders.items():
                found[name] = min(found[name], step(contender, images_NCHW, trainer))
    return found


def plain_step(net: nn.Module, trainer: TrainerSpec, shape: tuple[int, ...]) -> float:
    """Seconds of a training step of a copy of `net` on a batch of `shape` (N, C, H, W), as it is."""
    device = torch.device(trainer.device_type)
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        copied = copy.deepcopy(net).to(device).train().requires_grad_(True)
        images_NCHW = torch.randn(shape, device=device)
        return min(step(copied, images_NCHW, trainer) for _ in range(3))


def _pays(trainer: TrainerSpec, net: nn.Module, preprocessing: Preprocessing, batch_size: int, num_steps: int) -> bool:
    shape = (min(batch_size, BATCH), preprocessing.num_channels, *preprocessing.size_px)
    scale = batch_size / shape[0]
    if num_steps * scale * plain_step(net, trainer, shape) < WORTH_TRYING_S:
        logger.info("compile=auto: this run is too short for it.")
        return False
    found = _remembered(trainer, net, shape)
    if found is None:
        return False
    saved_s = num_steps * scale * (found["plain"] - found["compiled"])
    logger.info(
        "compile=auto: a compiled step is %.2f times as fast here; over this run that saves %.0f s, and starting costs %.0f s.",
        found["plain"] / found["compiled"],
        saved_s,
        found["start"],
    )
    return saved_s > found["start"]


def _remembered(trainer: TrainerSpec, net: nn.Module, shape: tuple[int, ...]) -> dict[str, float] | None:
    """What `trial` found on this machine, now or before; None where the net does not compile here."""
    path = cache_directory() / "compiling" / f"{trial_key(trainer, net, shape)}.json"
    try:
        return {name: float(json.loads(path.read_bytes())[name]) for name in ("start", "plain", "compiled")}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    logger.info("compile=auto: trying it, which takes a minute or more, once a machine.")
    try:
        found = trial(net, trainer, shape)
    except Exception as error:  # torch.compile fails in as many ways as there are compilers
        logger.info("compile=auto: this net does not compile here (%s).", type(error).__name__)
        return None
    try:
        write_atomic(path, json.dumps(found).encode())
    except EnvironmentProblem as error:
        logger.info("%s It will be measured again.", error)
    return found
