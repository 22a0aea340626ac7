"""How far to prune: one goal, as a share or as milliseconds, checked once."""

from dataclasses import dataclass
from typing import Literal, get_args

from toolkit.errors import UsageError

SHARES = ("macs", "params", "latency", "accuracy_drop", "ratio")
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Target:
    """One goal; half of the MACs where none is named.

    `macs`, `params` and `latency` are shares to keep (0..1) of the unpruned model's multiply-accumulates, parameters and
    milliseconds in onnxruntime; `latency_ms` is that latency itself. `accuracy_drop` prunes as far as accuracy on the
    validation split falls by no more (0..1), and `ratio` is the share of each group's channels to remove.

    Whatever the goal, latency is that of a batch of `batch` images on `threads` threads of the CPU, or on the CUDA device
    (`device`; "cpu" or "cuda"), and the grid of channels is what that device is fast on.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None
    ratio: float | None = None
    batch: int = 1
    threads: int = 1
    device: Device = "cpu"

    def __post_init__(self) -> None:
        given = [name for name in (*SHARES, "latency_ms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"Give exactly one pruning target, not {' and '.join(f'target.{name}' for name in given)}: set the others to "
                "null (target.macs=null target.latency=0.6)."
            )
        for name in given:
            value = getattr(self, name)
            if name == "latency_ms" and not 0 < value < float("inf"):
                raise UsageError(f"target.latency_ms is {value}; it must be a number of milliseconds above 0.")
            if name in SHARES and not 0 < value < 1:
                raise UsageError(f"target.{name} is {value}; it must lie strictly between 0 and 1.")
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"target.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.device not in get_args(Device):
            raise UsageError(
                f"target.device is '{self.device}'; choose cpu or cuda. For TensorRT prune for cuda (TensorRT "
                "would compile each layer of the table for seconds), and compare with "
                "`toolkit benchmark runners=[onnxruntime-tensorrt]`."
            )

    @property
    def conditions(self) -> str:
        """What latency is measured under, in words."""
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"batch {self.batch}, {threads if self.device == 'cpu' else 'CUDA'}"

    @property
    def goal(self) -> tuple[str, float]:
        """The name and the value of the one goal."""
        for name in (*SHARES, "latency_ms"):
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return "macs", 0.5


@dataclass(frozen=True)
class Budget:
    """What the arithmetic of selection can aim at: the share (0..1) of the whole net's `quantity` to keep, or to remove
    of each group's channels where the quantity is `ratio`."""

    quantity: str
    share: float

    def step(self, part: float) -> "Budget":
        """The aim of a step that goes `part` (0..1) of the way."""
        if part == 1:
            return self
        return Budget(self.quantity, self.share * part if self.quantity == "ratio" else 1 - (1 - self.share) * part)
