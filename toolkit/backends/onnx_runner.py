"""onnxruntime: how a graph is run.

Shapes: N images, C channels, H height, W width (pixels), K labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from toolkit.backends.onnx_files import refuse_outside_data
from toolkit.errors import EnvironmentProblem, InputRefused

LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
SEVERE = 4


class OnnxRunner:
    """Runs a one-input ONNX graph: float32 pixels images_NCHW in, the first output out.

    `providers` None takes the CPU; `threads` None lets onnxruntime choose. Raises `InputRefused` for a graph that cannot be
    loaded or keeps data outside its folder, `EnvironmentProblem` for a provider that is not here.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        optimisation: Literal["all", "basic", "off"] = "all",
    ) -> None:
        chosen = list(providers or ["CPUExecutionProvider"])
        absent = sorted(set(chosen) - set(onnxruntime.get_available_providers()))
        if absent:
            have = ", ".join(onnxruntime.get_available_providers())
            raise EnvironmentProblem(f"onnxruntime has no {', '.join(absent)} here (it has {have}).")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SEVERE
        options.graph_optimization_level = LEVELS[optimisation]
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        if isinstance(source, Path):
            refuse_outside_data(source)
        try:
            model = source if isinstance(source, bytes) else str(source)
            self.session = onnxruntime.InferenceSession(model, options, providers=chosen)
        except Exception as error:  # onnxruntime raises a class of its own for each failure
            where = "the graph" if isinstance(source, bytes) else str(source)
            raise InputRefused(f"onnxruntime cannot load {where}: {str(error).splitlines()[0]}") from error
        self.name = f"onnxruntime ({optimisation})" if optimisation != "all" else "onnxruntime"
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """The first output for float32 pixels images_NCHW."""
        return self.session.run([self.output], {self.input: np.ascontiguousarray(images_NCHW, dtype=np.float32)})[0]
