"""From a bundle to a runner.

A runtime is one file, `run_<kind>.py`, with `open_bundle` and `require_here`; adding the file adds the kind.
"""

import importlib
import pkgutil
from pathlib import Path

from toolkit.backends.adapted import AdaptedRunner
from toolkit.backends.devices import PROVIDERS, Device
from toolkit.backends.number_formats import graph_in
from toolkit.backends.runner import Runner
from toolkit.bundle import ONNX, Bundle
from toolkit.errors import unknown_name
from toolkit.models.restoring import GRAPH_ONLY

PREFIX = "run_"


def runner_kinds() -> list[str]:
    """The kinds of runner there are, by the files of this package."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.removeprefix(PREFIX) for module in modules if module.name.startswith(PREFIX))


def require_runner(kind: str, device: Device = "cpu") -> None:
    """Raise `EnvironmentProblem`, saying what is missing, unless runners of `kind` can work on `device` here.

    Raises `UsageError` for a kind there is not, or a device the kind does not know.
    """
    if kind not in runner_kinds():
        raise unknown_name("runner", kind, runner_kinds())
    importlib.import_module(f"toolkit.backends.{PREFIX}{kind}").require_here(device)


def open_runner(
    bundle: Bundle,
    *,
    kind: str = "auto",
    precision: str = "fp32",
    device: Device = "cpu",
    threads: int | None = None,
) -> Runner:
    """A runner of `bundle`: the kind it is served with (`auto`: onnx when it is exported, else eager), or the one named.

    `precision` is fp32, fp16 or int8 for a graph (the bundle holds a file for each it was exported in), fp32, bf16 or fp16
    for torch; `device` cpu, cuda or tensorrt. Raises `UsageError` for an unknown kind or a precision or device that it does
    not know, `InputRefused` when the bundle lacks or damages what that kind needs, `EnvironmentProblem` when the machine does.
    """
    if kind == "auto":
        kind = "onnx" if bundle.has(ONNX) else "eager"
    if kind not in runner_kinds():
        raise unknown_name("runner", kind, [*runner_kinds(), "auto"])
    manifest = bundle.manifest
    if kind == "onnx" and manifest.architecture.key == GRAPH_ONLY:
        return AdaptedRunner(
            graph_in(bundle, precision),
            contract=manifest.contract,
            preprocessing=manifest.preprocessing,
            providers=PROVIDERS[device],
            threads=threads,
        )
    module = importlib.import_module(f"toolkit.backends.{PREFIX}{kind}")
    return module.open_bundle(bundle, precision=precision, device=device, threads=threads)
