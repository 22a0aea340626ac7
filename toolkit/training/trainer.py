"""Where and how fast a fit runs: device, processes, number format, memory layout, threads.

These settings say nothing about what is learned (but for rounding), so they are no part of a bundle's recipe.
Lightning drives devices, processes, the epoch loop and loggers. Gradients are averaged here rather than by
DistributedDataParallel, which fixes the set of trainable parameters once while phases change it.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from toolkit.errors import EnvironmentProblem, UsageError, unknown_name
from toolkit.training.checkpoint import DurableCheckpointIO

LoggerMaker = Logger | Callable[[Path], Logger]

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "bf16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class TrainerSpec:
    """One machine's settings.

    `accelerator` auto takes a GPU when there is one. `precision` auto is bf16-mixed on a GPU that has it, else 32 (on a CPU it
    is only taken when asked for, and refused where it would be emulated: a bundle's recipe names the number format, and the
    same command should make the same bundle on the next machine). `channels_last` lays images and convolution weights out
    NHWC; "auto" tries both for some seconds, once a machine.
    `strategy`: ddp lets each process hold the net, fsdp a part of it (for nets too large for one device; in NCHW, uncompiled).
    `compile` runs the net through torch.compile (minutes to start); "auto" does where a trial says that the run earns it back.
    `threads` None leaves torch's setting.
    `cache_features` computes what a phase's frozen part gives once. `checkpoint_every_s`: the most seconds between two
    checkpoints, at the next step after; 0 writes one at every step. `loggers` (plain or by name) receive each epoch's metrics.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: str | int = "auto"
    channels_last: bool | Literal["auto"] = True
    compile: bool | Literal["auto"] = False
    threads: int | None = None
    cache_features: bool = True
    checkpoint_every_s: float = 60.0
    loggers: Mapping[str, LoggerMaker] | Sequence[LoggerMaker] = ()

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise unknown_name("accelerator", self.accelerator, ACCELERATORS)
        if str(self.precision) not in PRECISIONS:
            raise unknown_name("precision", str(self.precision), PRECISIONS)
        if self.strategy not in STRATEGIES:
            raise unknown_name("strategy", self.strategy, STRATEGIES)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; it must be at least 1, or null to leave torch's setting")
        if self.num_nodes < 1 or (isinstance(self.devices, int) and self.devices < 1):
            raise UsageError(f"devices is {self.devices} and num_nodes {self.num_nodes}; each must be at least 1")
        if self.strategy == "auto" and (self.num_nodes > 1 or self.devices != 1):
            raise UsageError("several devices or nodes need strategy=ddp (trainer=ddp) or fsdp (trainer=fsdp)")
        if self.strategy == "fsdp" and (self.channels_last is True or self.compile is True):
            raise UsageError("strategy=fsdp trains in NCHW and uncompiled: set channels_last=false and compile=false")
        if self.checkpoint_every_s < 0:
            raise UsageError(f"checkpoint_every_s is {self.checkpoint_every_s}; it must not be negative")

    @property
    def device_type(self) -> str:
        """`cpu`, `cuda` or `mps`. Raises `EnvironmentProblem` when the accelerator asked for is not here."""
        here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.accelerator == "auto":
            return next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
        kind = "cuda" if self.accelerator == "gpu" else self.accelerator
        if not here[kind]:
            raise EnvironmentProblem(f"accelerator is {self.accelerator}, but torch finds no such device. Use trainer=cpu.")
        return kind

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The number format of autocast regions, None for float32 throughout. Raises `EnvironmentProblem`."""
        kind, precision = self.device_type, str(self.precision)
        if precision == "auto":
            return torch.bfloat16 if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else None
        if precision == "bf16-mixed" and kind == "cpu" and not cpu_has_bf16():
            raise EnvironmentProblem(
                "precision is bf16-mixed, but this CPU has neither AVX512-BF16 nor AMX-BF16: bfloat16 would be emulated and "
                "train 8 to 25 times slower. Use precision=32."
            )
        return torch.bfloat16 if precision == "bf16-mixed" else None

    def require_supported(self) -> None:
        """Raise `EnvironmentProblem` when this machine lacks the device or the number format asked for."""
        _ = self.autocast_dtype


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware, by the flags the kernel lists; False where it lists none."""
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


class SummedGradients(DDPStrategy):
    """Data-parallel processes whose module is left unwrapped: the learner sums the gradients itself."""

    def _setup_model(self, model: nn.Module) -> Any:
        return model

    def _register_ddp_hooks(self) -> None:
        return


def run_lightning(
    learner: LightningModule, spec: TrainerSpec, *, loggers: Sequence[Logger], callbacks: Sequence[Callback], run_dir: Path
) -> None:
    """Run `learner` to its end under a Lightning Trainer that prints nothing and writes only through `loggers`."""
    made = {"ddp": SummedGradients, "fsdp": ModelParallelStrategy}.get(spec.strategy)
    with _quiet():
        trainer = Trainer(
            accelerator=spec.device_type,
            devices=spec.devices,
            num_nodes=spec.num_nodes,
            strategy=made() if made else "auto",
            precision="32-true",
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=list(loggers) or False,
            callbacks=list(callbacks),
            plugins=[DurableCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
        )
        trainer.fit(learner)


@contextlib.contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads for the length of the block (None: as it is)."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and its advice about loaders it does not know off the terminal."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric")
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in before:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        try:
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
