"""The model as onnxruntime runs it: the form that is served.

A graph file is input from outside: where its tensors may lie is checked (`graph_files`) before onnxruntime sees it, because
onnxruntime follows symbolic links and onnx's own checker accepts truncated data.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime  # pyright: ignore[reportAttributeAccessIssue]

from toolkit.backends.devices import PROVIDERS, Device
from toolkit.backends.graph_contract import graph_to_run
from toolkit.backends.graph_files import require_sound_files
from toolkit.backends.runner import Runner, pixel_batch
from toolkit.bundle import Bundle
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError, unknown_name

Provider = str | tuple[str, dict[str, str]]

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
FATAL_ONLY = 4
ORT_ERRORS = tuple(kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception))


class OnnxRunner:
    """Runs an ONNX graph (path or bytes) with one input of pixels (N, C, H, W) and logits (N, K) as its first output.

    `providers` are onnxruntime's execution providers, by name or with options (None: the CPU's), `optimisation` its graph
    optimisation level, `threads` its threads within an operator (None: one a core). Raises `InputRefused` for a damaged or
    unsafe graph.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        optimisation: Literal["all", "basic", "off"] = "all",
    ) -> None:
        self.session = open_session(graph, providers=providers, threads=threads, optimisation=optimisation)
        self.origin = "graph in memory" if isinstance(graph, bytes) else str(graph)
        self.name = f"onnxruntime-{optimisation}"
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0].name
        if len(self.session.get_inputs()) != 1:
            names = ", ".join(i.name for i in self.session.get_inputs())
            raise InputRefused(f"{self.origin} has the inputs {names}; a classifier's graph has one, the image batch.")

    @property
    def settings(self) -> dict[str, Any]:
        """How the numbers are computed, for the record."""
        return session_settings(self.session)

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K) of float32 pixels 0..255 (N, C, H, W). Raises `UsageError` when the batch does not fit the graph."""
        batch_NCHW = pixel_batch(images_NCHW, name=self.origin)
        wanted = self.input.shape
        if any(isinstance(w, int) and w != n for w, n in zip(wanted, batch_NCHW.shape, strict=True)):
            raise UsageError(f"{self.origin} takes images of shape {wanted}; got {list(batch_NCHW.shape)}.")
        try:
            return np.asarray(self.session.run([self.output], {self.input.name: batch_NCHW})[0])
        except ORT_ERRORS as error:
            raise InputRefused(
                f"{self.origin} cannot run a batch of shape {list(batch_NCHW.shape)}: {_first_line(error)}. "
                "Its shapes are fixed or inconsistent: export it again with a dynamic batch."
            ) from error


def open_session(
    graph: Path | str | bytes,
    *,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    optimisation: Literal["all", "basic", "off"] = "all",
) -> Any:
    """An onnxruntime session of a checked graph.

    Raises `InputRefused`, `UsageError` for an unknown provider or level, `EnvironmentProblem` for a provider that onnxruntime
    knows and this machine cannot run: onnxruntime itself would go on with the next one, and the CPU's times would pass for
    the card's.
    """
    if optimisation not in LEVELS:
        raise UsageError(f"optimisation is '{optimisation}'; choose all, basic or off.")
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers or ("CPUExecutionProvider",)]
    for name in names:
        _require_provider(name)
    origin = "the graph in memory" if isinstance(graph, bytes) else str(graph)
    require_sound_files(graph)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[optimisation]
    options.log_severity_level = FATAL_ONLY
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            sess_options=options,
            providers=list(providers or ("CPUExecutionProvider",)),
        )
    except ORT_ERRORS as error:
        raise InputRefused(f"onnxruntime cannot load {origin}: {_first_line(error)}.") from error
    if session.get_providers()[0] != names[0]:
        raise EnvironmentProblem(
            f"onnxruntime could not start {names[0]} and fell back to {session.get_providers()[0]}: its libraries (CUDA, "
            "cuDNN, TensorRT) or the device are missing. Install those this onnxruntime was built for, or run on the CPU."
        )
    return session


def session_settings(session: Any) -> dict[str, Any]:
    """The execution providers of a session, its threads, and whether TF32 may replace float32 there, for the record."""
    tf32 = {
        name: options["use_tf32"] != "0" for name, options in session.get_provider_options().items() if "use_tf32" in options
    }
    threads = session.get_session_options().intra_op_num_threads
    return {"providers": session.get_providers(), "intra_op_threads": threads or "one a core"} | (
        {"tf32": tf32} if tf32 else {}
    )


def require_here(device: Device) -> None:
    """Raise `EnvironmentProblem` unless the installed onnxruntime has the execution providers of `device`."""
    for name, _ in PROVIDERS[device]:
        _require_provider(name)


def open_bundle(bundle: Bundle, *, precision: str = "fp32", device: Device = "cpu", threads: int | None = None) -> Runner:
    """The bundle's exported graph in `precision`; images are copied to the device and logits back in every call."""
    return OnnxRunner(graph_to_run(bundle, precision), providers=PROVIDERS[device], threads=threads)


def _require_provider(name: str) -> None:
    available = onnxruntime.get_available_providers()
    if name in available:
        return
    if name not in onnxruntime.get_all_providers():
        raise unknown_name("execution provider", name, available)
    raise EnvironmentProblem(
        f"the installed onnxruntime {onnxruntime.__version__} has no {name} (it has {', '.join(available)}): for CUDA and "
        "TensorRT, pip uninstall onnxruntime and pip install onnxruntime-gpu, on a machine with the card and its libraries."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
