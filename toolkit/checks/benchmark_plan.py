"""What a benchmark compares: runners, precisions and batch sizes, and which combinations of them there are.

A runner is called by its runtime (`eager`, `compile`, `onnxruntime`, `openvino`), followed by `-cuda` or `-tensorrt` where it
computes there. Not every runtime has every precision: what does not exist, or what this processor would only emulate, is left
out and said so; what the bundle lacks or the machine misses is an error, before anything is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.backends import autocast_dtype, graph_in, require_runner, runner_kinds
from toolkit.bundle import GRAPHS, WEIGHTS, Bundle
from toolkit.errors import EnvironmentProblem, ToolkitError, UsageError, unknown_name

KIND_OF = {"onnxruntime": "onnx"}
TORCH_KINDS = ("eager", "compile")
DEVICES = ("cuda", "tensorrt")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Timing:
    """How long and on how much: `rounds` timed calls of each runner, over `launches` processes of `threads` threads each.

    Intervals come from the launches: with two they are too wide to tell anything apart. A call that a busy neighbour disturbed
    can be told only with one thread.
    """

    rounds: int = 100
    launches: int = 5
    threads: int = 1

    def __post_init__(self) -> None:
        if self.launches < 2 or self.rounds < 2 * self.launches or self.threads < 1:
            raise UsageError(
                f"benchmark: timing.rounds is {self.rounds}, timing.launches {self.launches}, timing.threads {self.threads}; "
                "give at least 2 launches, 2 rounds for each of them, and 1 thread."
            )


@dataclass(frozen=True)
class Entry:
    """One line of the comparison: its name, what opens it (`kind`, `device`, `precision`), and the runner it was asked as."""

    name: str
    runner: str
    kind: str
    device: str
    precision: str

    def size_bytes(self, bundle: Bundle) -> int:
        """The size of the files it needs: the graph with its external data, or the weights."""
        start = WEIGHTS if self.kind in TORCH_KINDS else GRAPHS[self.precision]
        return sum((bundle.path / name).stat().st_size for name in bundle.manifest.files if name.startswith(start))


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is compared: runner names (the first is compared with; a repeated name is run again), precisions, batch sizes."""

    runners: Sequence[str] = ("eager", "onnxruntime")
    precision: Sequence[str] = ("fp32",)
    batch: Sequence[int] = (1, 8)
    timing: Timing = Timing()

    def __post_init__(self) -> None:
        if len(self.runners) == 0 or len(self.precision) == 0 or len(self.batch) == 0 or min(self.batch) < 1:
            raise UsageError(
                f"benchmark: runners {list(self.runners)}, precision {list(self.precision)}, batch {list(self.batch)}; give at "
                "least one runner, one precision and one batch size, each of at least 1."
            )
        for runner in self.runners:
            kind_and_device(runner)
        for precision in self.precision:
            if precision not in PRECISIONS:
                raise unknown_name("precision", precision, PRECISIONS)

    def entries(self, bundle: Bundle) -> tuple[list[Entry], list[str]]:
        """The lines of the comparison for `bundle`, and what was left out with its reason.

        Raises `UsageError` for a precision that none of the runners has, `EnvironmentProblem` where a runner cannot work on
        this machine, `InputRefused` where the bundle lacks a graph.
        """
        found: list[Entry] = []
        left_out: list[str] = []
        for runner in dict.fromkeys(self.runners):
            require_runner(*kind_and_device(runner))
        for precision in self.precision:
            reasons: dict[str, ToolkitError] = {}
            for runner in self.runners:
                kind, device = kind_and_device(runner)
                reason = _lacking(bundle, kind, device, precision)
                if reason:
                    reasons[runner] = reason
                    continue
                name = runner if precision == "fp32" else f"{runner}-{precision}"
                seen = sum((each.runner, each.precision) == (runner, precision) for each in found)
                found.append(Entry(f"{name}-{seen + 1}" if seen else name, runner, kind, device, precision))
            if all(runner in reasons for runner in self.runners):
                error = next(iter(reasons.values()))
                raise type(error)(f"benchmark: no runner of {', '.join(reasons)} has precision {precision}: {error}")
            left_out += [f"{runner} in {precision}: {reason}" for runner, reason in reasons.items()]
        return found, left_out


def kind_and_device(runner: str) -> tuple[str, Any]:
    """The kind that `open_runner` knows and the device, of a runner's name. Raises `UsageError` for an unknown one."""
    runtime, _, device = runner.rpartition("-")
    if device not in DEVICES:
        runtime, device = runner, "cpu"
    kind = KIND_OF.get(runtime, runtime)
    if kind not in runner_kinds():
        known = {*runner_kinds(), *KIND_OF, "eager-cuda", "compile-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt"}
        raise unknown_name("runner", runner, known)
    return kind, device


def _lacking(bundle: Bundle, kind: str, device: Any, precision: str) -> ToolkitError | None:
    """Why this kind does not run in that precision here; what the bundle lacks is raised."""
    try:
        if kind in TORCH_KINDS:
            autocast_dtype(precision, device=device)
        else:
            graph_in(bundle, precision)
    except (UsageError, EnvironmentProblem) as error:
        return error
    return None
