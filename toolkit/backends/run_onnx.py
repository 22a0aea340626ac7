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

from toolkit.backends.graph_files import require_sound_files
from toolkit.backends.runner import Runner, pixel_batch
from toolkit.bundle import ONNX, Bundle
from toolkit.errors import InputRefused, UsageError, unknown_name

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
FATAL_ONLY = 4
ORT_ERRORS = tuple(kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception))


class OnnxRunner:
    """Runs an ONNX graph (path or bytes) with one input of pixels (N, C, H, W) and logits (N, K) as its first output.

    `providers` are onnxruntime's execution providers (None: the CPU's), `optimisation` its graph optimisation level,
    `threads` its threads within an operator (None: one a core). Raises `InputRefused` for a damaged or unsafe graph.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        providers: Sequence[str] | None = None,
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
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    optimisation: Literal["all", "basic", "off"] = "all",
) -> Any:
    """An onnxruntime session of a checked graph. Raises `InputRefused`, `UsageError` for an unknown provider or level."""
    if optimisation not in LEVELS:
        raise UsageError(f"optimisation is '{optimisation}'; choose all, basic or off.")
    available = onnxruntime.get_available_providers()
    for provider in providers or ():
        if provider not in available:
            raise unknown_name("execution provider", provider, available)
    origin = "the graph in memory" if isinstance(graph, bytes) else str(graph)
    require_sound_files(graph)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[optimisation]
    options.log_severity_level = FATAL_ONLY
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            sess_options=options,
            providers=list(providers or ("CPUExecutionProvider",)),
        )
    except ORT_ERRORS as error:
        raise InputRefused(f"onnxruntime cannot load {origin}: {_first_line(error)}.") from error


def open_bundle(bundle: Bundle, *, threads: int | None = None) -> Runner:
    """The bundle's exported graph."""
    return OnnxRunner(bundle.file(ONNX), threads=threads)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
