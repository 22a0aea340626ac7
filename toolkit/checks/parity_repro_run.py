"""Run the part of a graph in which a fault was found, against float64: needs onnxruntime, numpy and safetensors alone.

This file is copied as `repro.py` beside the part. It prints the error in floors (multiples of what float32 itself costs there)
at each of onnxruntime's optimiser levels; its exit code is 1 where one is above the limit, else 0.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
EPSILON = 2.0**-24


def error_ratio(value: np.ndarray, expected: np.ndarray, floor_N: np.ndarray) -> float:
    """The worst image's root mean square error in floors, what rounding the value alone costs taken off."""
    if value.shape != expected.shape or not np.isfinite(value).all():
        return float("inf")
    error_N, scale_N = _rms(value - expected), _rms(expected)
    excess_N = np.maximum(error_N - 4 * EPSILON * scale_N, 0)
    return float((excess_N / np.maximum(floor_N, np.finfo(np.float64).tiny)).max())


def main(folder: Path) -> int:
    """Print the error of the part in `folder` at each optimiser level; 1 where one is above the limit."""
    facts = json.loads((folder / "fault.json").read_text(encoding="utf-8"))
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    print(facts["sentence"])
    print(f"onnxruntime {onnxruntime.__version__}, {facts['num_nodes']} nodes, output {facts['output']}, limit {facts['k']:g}")
    wrong = False
    for level, setting in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = setting
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        (value,) = session.run([facts["output"]], inputs)
        ratio = error_ratio(np.asarray(value, np.float64), expected["output"], expected["floor"])
        wrong |= not ratio <= facts["k"]
        print(f"optimiser {level:5}  error {ratio:10.4g} floors  {'within its noise' if ratio <= facts['k'] else 'FAULT'}")
    return int(wrong)


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(values.reshape(len(values), -1), dtype=np.float64), axis=1))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
