"""The model as OpenVINO runs it, on the CPU: it reads the exported ONNX graph. The package is an optional extra.

Two of its defaults would make a comparison unfair or wrong, so both are set: on processors with bfloat16 it computes float32
graphs in bfloat16 without saying so, and it pins its threads to cores from the first on, where the processes of two runners
would meet. It also takes images of another size than the graph declares and answers something, so shapes are checked here.

Legend: N images, C channels, H height, W width, K labels.
"""

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.backends.devices import Device
from toolkit.backends.graph_contract import graph_to_run
from toolkit.backends.graph_files import require_sound_files
from toolkit.backends.runner import Runner, pixel_batch
from toolkit.bundle import Bundle
from toolkit.errors import InputRefused, UsageError, missing_extra
from toolkit.models.restoring import GRAPH_ONLY

try:
    import openvino
except ImportError:
    openvino = None

SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": "NO",
}
RECORDED = ("INFERENCE_NUM_THREADS", *SETTINGS)


class OpenvinoRunner:
    """Runs the ONNX graph `path` (or its bytes), one input of pixels (N, C, H, W) and logits (N, K) as its first output.

    `threads` (None: OpenVINO's choice) bounds its threads. Raises `InputRefused` for a damaged or unsafe graph and
    `EnvironmentProblem` where the package is not installed.
    """

    def __init__(self, path: Path | bytes, *, threads: int | None = None) -> None:
        require_here("cpu")
        assert openvino is not None
        require_sound_files(path)
        self.name, self.origin = "openvino", "the graph in memory" if isinstance(path, bytes) else str(path)
        chosen = SETTINGS | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        core = openvino.Core()
        try:
            self.compiled = core.compile_model(core.read_model(path), "CPU", chosen)
        except RuntimeError as error:
            raise InputRefused(f"OpenVINO cannot load {self.origin}: {_last_line(error)}.") from error
        if len(self.compiled.inputs) != 1:
            raise InputRefused(
                f"{self.origin} has {len(self.compiled.inputs)} inputs; a classifier's graph has one, the image batch."
            )
        dims = self.compiled.inputs[0].partial_shape
        self.wanted = [dim.get_length() if dim.is_static else None for dim in dims]
        self.request = self.compiled.create_infer_request()

    @property
    def settings(self) -> dict[str, Any]:
        """How the numbers are computed, for the record."""
        assert openvino is not None
        found = {name.lower(): self.compiled.get_property(name) for name in RECORDED}
        found["inference_precision_hint"] = found["inference_precision_hint"].to_string()
        return {"version": openvino.get_version()} | {name: str(value) for name, value in found.items()}

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Logits (N, K) of float32 pixels 0..255 (N, C, H, W). Raises `UsageError` when the batch does not fit the graph."""
        batch_NCHW = pixel_batch(images_NCHW, name=self.origin)
        if any(want is not None and want != got for want, got in zip(self.wanted, batch_NCHW.shape, strict=True)):
            raise UsageError(f"{self.origin} takes images of shape {self.wanted}; got {list(batch_NCHW.shape)}.")
        try:
            return self.request.infer({0: batch_NCHW}, share_inputs=True)[0]
        except RuntimeError as error:
            raise InputRefused(
                f"OpenVINO cannot run {self.origin} on a batch of shape {list(batch_NCHW.shape)}: {_last_line(error)}."
            ) from error


def require_here(device: Device) -> None:
    """Raise `EnvironmentProblem` unless OpenVINO is installed, `UsageError` for a device other than the CPU."""
    if openvino is None:
        raise missing_extra("openvino", "openvino", "runner openvino")
    if device != "cpu":
        raise UsageError(f"runner openvino runs on the CPU, not on {device}: use onnxruntime-{device}.")


def open_bundle(bundle: Bundle, *, precision: str = "fp32", device: Device = "cpu", threads: int | None = None) -> Runner:
    """The bundle's exported graph in `precision`; a float16 graph keeps its weights and is computed in float32."""
    require_here(device)
    if bundle.manifest.architecture.key == GRAPH_ONLY:
        raise InputRefused(
            f"bundle {bundle.short} is a graph of unknown origin, whose contract only onnxruntime is asked to keep: "
            "use runner onnxruntime for it."
        )
    return OpenvinoRunner(graph_to_run(bundle, precision), threads=threads)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rstrip(". ")
