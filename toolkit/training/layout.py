"""The memory layout `auto`: NHWC or NCHW, whichever a few training steps of this net show to be faster on this machine.

Which one wins depends on the processor, the library and the net (0.97 to 2.1 times were measured on CPUs), so it is tried: two
copies, in turns, some steps each, at most a few seconds. The answer is kept for the machine. It changes results by rounding
alone, but a resumed run must not change at all, so the run directory keeps it too.
"""

import copy
import hashlib
import json
import logging
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.bundle import Preprocessing, environment
from toolkit.bundle.atomic import write_atomic
from toolkit.bundle.machine import cache_directory
from toolkit.errors import EnvironmentProblem
from toolkit.training import processes
from toolkit.training.trainer import TrainerSpec

LAYOUT = "layout.json"
LEAST_GAIN = 1.03  # below this a difference is noise, and the plain layout has fewer surprises
ROUNDS, SECONDS, BATCH = 5, 3.0, 16

logger = logging.getLogger(__name__)


def with_layout(
    trainer: TrainerSpec, net: nn.Module, preprocessing: Preprocessing, *, batch_size: int, run_dir: Path, resume: bool
) -> TrainerSpec:
    """`trainer` with true or false for `channels_last`: as it is, as the run to resume had it, or tried on copies of `net`.

    Processes that train together do not try (they could disagree): they take NHWC, a sharded net NCHW, all it has.
    """
    if trainer.channels_last != "auto":
        return trainer
    kept = run_dir / LAYOUT
    if resume and kept.is_file():
        return replace(trainer, channels_last=bool(json.loads(kept.read_bytes())["channels_last"]))
    if trainer.strategy != "auto" or not any(isinstance(module, nn.Conv2d) for module in net.modules()):
        chosen = trainer.strategy == "ddp"
    else:
        chosen = _remembered(trainer, net, preprocessing, min(batch_size, BATCH))
    if processes.is_first():
        write_atomic(kept, json.dumps({"channels_last": chosen}).encode())
    return replace(trainer, channels_last=chosen)


def step_seconds(net: nn.Module, trainer: TrainerSpec, shape: tuple[int, ...]) -> dict[bool, float]:
    """The quickest training step of `net` on a batch of `shape` (N, C, H, W), in seconds, by channels_last, tried in turns."""
    device = torch.device(trainer.device_type)
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        contenders = {}
        for nhwc in (False, True):
            layout = torch.channels_last if nhwc else torch.contiguous_format
            trial: Any = copy.deepcopy(net).to(device).train().requires_grad_(True)
            images_NCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
            trial = trial.to(memory_format=layout)
            contenders[nhwc] = trial, images_NCHW
            step(trial, images_NCHW, trainer)  # picks its kernels
        found, started = dict.fromkeys(contenders, float("inf")), time.perf_counter()
        for _ in range(ROUNDS):
            for nhwc, (trial, images_NCHW) in contenders.items():
                found[nhwc] = min(found[nhwc], step(trial, images_NCHW, trainer))
            if time.perf_counter() - started > SECONDS:
                break
    return found


def _remembered(trainer: TrainerSpec, net: nn.Module, preprocessing: Preprocessing, batch_size: int) -> bool:
    shape = (batch_size, preprocessing.num_channels, *preprocessing.size_px)
    path = cache_directory() / "layouts" / f"{trial_key(trainer, net, shape)}.json"
    try:
        return bool(json.loads(path.read_bytes())["channels_last"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    seconds = step_seconds(net, trainer, shape)
    gain = seconds[False] / seconds[True]
    logger.info("channels_last=auto: a step in NHWC is %.2f times as fast as in NCHW here.", gain)
    try:
        facts = {"channels_last": gain >= LEAST_GAIN, "seconds": {"nhwc": seconds[True], "nchw": seconds[False]}}
        write_atomic(path, json.dumps(facts).encode())
    except EnvironmentProblem as error:
        logger.info("%s It will be measured again.", error)
    return gain >= LEAST_GAIN


def trial_key(trainer: TrainerSpec, net: nn.Module, shape: tuple[int, ...]) -> str:
    """What the answer depends on: the machine, the library, the net's shape, the number format and the threads."""
    kind, here = trainer.device_type, environment()
    device = torch.cuda.get_device_name() if kind == "cuda" else here["processor"]
    tensors = [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]
    threads = trainer.threads or torch.get_num_threads()
    facts = [device, platform.machine(), torch.__version__, str(trainer.autocast_dtype), threads, shape, tensors]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def step(net: nn.Module, images_NCHW: Tensor, trainer: TrainerSpec) -> float:
    """Seconds of one forward and backward pass, the device waited for."""
    started = time.perf_counter()
    with torch.autocast(images_NCHW.device.type, trainer.autocast_dtype, enabled=trainer.autocast_dtype is not None):
        found: Any = net(images_NCHW)
    (found if isinstance(found, Tensor) else found[0]).float().square().mean().backward()
    if images_NCHW.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
