"""How a deployed model is run and written: runners (one file a runtime, `run_<kind>.py`), the ONNX writer, the clock."""

from toolkit.backends.as_module import RunnerModule, as_module
from toolkit.backends.clock import Latency, measure_latency
from toolkit.backends.describe import module_path, source_line
from toolkit.backends.devices import free_device_bytes
from toolkit.backends.number_formats import autocast_dtype, graph_in
from toolkit.backends.opening import open_runner, require_runner, runner_kinds
from toolkit.backends.run_eager import EagerRunner
from toolkit.backends.run_onnx import OnnxRunner, open_session
from toolkit.backends.runner import Runner
from toolkit.backends.write import ExportFacts, graph_opset, write_onnx

__all__ = [
    "EagerRunner",
    "ExportFacts",
    "Latency",
    "OnnxRunner",
    "Runner",
    "RunnerModule",
    "as_module",
    "autocast_dtype",
    "free_device_bytes",
    "graph_in",
    "graph_opset",
    "measure_latency",
    "module_path",
    "open_runner",
    "open_session",
    "require_runner",
    "runner_kinds",
    "source_line",
    "write_onnx",
]
