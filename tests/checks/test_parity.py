"""Parity passes a faithful graph and catches planted faults of every kind; a tie is no fault, ill-conditioning no verdict."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.backends.small import PREPROCESSING, altered, images_NCHW, small, written
from toolkit.backends.noise import Noise
from toolkit.bundle import Report
from toolkit.checks.parity import ParityLimits, parity
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed

DIGEST = "cd" * 32
QUICK = ParityLimits(batches=[1, 7])
Fault = Callable[[Path], None]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clean"))[0]


@pytest.fixture
def graph(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clean, tmp_path / "model.onnx"))


def checked(graph: Path, deployed: nn.Module | None = None, limits: ParityLimits = QUICK) -> Report:
    return parity(deployed or small(), graph, images_NCHW(), subject=DIGEST, limits=limits)


def test_a_faithful_graph_passes_with_every_number_in_the_report(clean: Path) -> None:
    report = checked(clean, limits=ParityLimits())
    assert (report.check, report.subjects, report.verdict) == ("parity", (DIGEST,), "pass")
    assert report.value("error_ratio.median") <= report.value("error_ratio.p99") <= report.value("error_ratio.max") < 4
    assert 0 < report.value("max_error.onnxruntime_all") < 1e-4
    assert 0 < report.value("max_error.torch_float32") < 1e-4
    assert report.value("opset") == 20
    assert report.value("finite") == 1
    assert report.details["num_edge_images"] == 4
    assert {(run["device"], run["optimiser"], run["batch"]) for run in report.details["runs"]} >= {
        ("cpu", level, batch) for level in ("off", "basic", "all") for batch in (1, 2, 7, 32)
    }
    assert report.value("top1_agreement") == report.value("top5_agreement") == 1
    assert report.details["devices"] == sorted({run["device"] for run in report.details["runs"]})
    assert Report.from_json(report.to_json(), "report").measurements == report.measurements


@pytest.mark.parametrize("seed", range(1, 4))
def test_other_weights_raise_no_false_alarm(seed: int, tmp_path: Path) -> None:
    deployed = small(seed)
    assert checked(written(tmp_path, deployed)[0], deployed).verdict == "pass"


def scaled_weight(graph: Path) -> None:
    scale = np.ones((16, 16, 3, 3))
    scale[3, 5, 1, 1] = 1.1
    altered(graph, "net.conv2.weight", scale)


def swapped_channels(graph: Path) -> None:
    model = onnx.load(graph)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "net.conv1.weight"]
    values = numpy_helper.to_array(tensor).copy()
    values[[0, 1]] = values[[1, 0]]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, graph)


def permuted_labels(graph: Path) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name in ("net.head.weight", "net.head.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[[1, 2, 0]].copy(), tensor.name))
    onnx.save(model, graph)


def half_precision_weights(graph: Path) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, graph)


def not_a_number(graph: Path) -> None:
    altered(graph, "net.head.bias", float("nan"))


def baked_batch(graph: Path) -> None:
    model = onnx.load(graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, graph)


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        (scaled_weight, "error_ratio.max"),
        (swapped_channels, "error_ratio.max"),
        (permuted_labels, "decisions_changed"),
        (half_precision_weights, "error_ratio.max"),
        (not_a_number, "finite"),
        (baked_batch, "batches_refused"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_in_the_graph_fails(graph: Path, fault: Fault, broken: str) -> None:
    fault(graph)
    report = checked(graph)
    assert report.verdict == "fail"
    assert broken in [m.name for m in report.measurements if m.passed is False]
    report.to_json()


def other_epsilon(deployed: Deployed) -> Deployed:
    for module in deployed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return deployed


def other_mean(deployed: Deployed) -> Deployed:
    return Deployed(deployed.net, replace(PREPROCESSING, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))


def other_activation(deployed: Deployed) -> Deployed:
    deployed.net.act = nn.Hardswish()
    return deployed


@pytest.mark.parametrize("change", [other_epsilon, other_mean, other_activation], ids=lambda change: change.__name__)
def test_a_graph_of_another_model_fails(graph: Path, change: Callable[[Deployed], Deployed]) -> None:
    assert checked(graph, change(small())).verdict == "fail"


def test_a_disagreement_is_a_tie_only_inside_the_measured_error() -> None:
    random = np.random.default_rng(0)
    double_NK = np.array([[1.0, 0.0], [1e-7, 0.0], [1.0, 0.0]])
    noise = Noise(double_NK, double_NK + 1e-7 * random.standard_normal((5, 3, 2)))
    changed, ties = noise.disagreements(double_NK[:, ::-1], k=8)
    assert (changed, ties) == ([0, 2], [1])
    assert noise.disagreements(double_NK, k=8) == ([], [])


def test_the_first_five_labels_are_a_decision_too() -> None:
    double_NK = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0], [5.0, 4.0, 4.0 - 1e-7, 2.0, 1.0, 0.5, 0.0]])
    noise = Noise(double_NK, double_NK + 1e-7 * np.random.default_rng(0).standard_normal((5, 2, 7)))
    assert noise.disagreements(double_NK[:, [0, 2, 1, 3, 4, 5, 6]], k=8) == ([], [])
    assert noise.disagreements(double_NK[:, [0, 2, 1, 3, 4, 5, 6]], k=8, top=5) == ([0], [1])
    assert noise.disagreements(double_NK[:, [0, 1, 2, 3, 5, 4, 6]], k=8, top=5) == ([0, 1], [])  # the sixth comes in
    assert noise.disagreements(double_NK[:, [0, 1, 2, 3, 4, 6, 5]], k=8, top=5) == ([], [])


class Cancelling(nn.Module):
    """Its logits are small differences of large numbers, which float32 cannot hold."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return (images_NCHW.mean((2, 3)) + 3e7) - 3e7


def test_where_float32_itself_is_far_off_parity_is_undecided(tmp_path: Path) -> None:
    deployed = Deployed(Cancelling(), PREPROCESSING)
    graph, _ = written(tmp_path, deployed)
    report = checked(graph, deployed)
    assert report.verdict == "undecided"
    assert report.value("float32_share") > 0.01


def test_no_images_a_damaged_graph_and_impossible_limits_are_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="real images"):
        parity(small(), graph, images_NCHW()[:0], subject=DIGEST)
    graph.write_bytes(graph.read_bytes()[:500])
    with pytest.raises(InputRefused, match=r"model\.onnx"):
        checked(graph)
    for wrong in ({"k_fail": 1.0}, {"k_warn": 0.0}, {"batches": []}, {"batches": [0]}, {"num_runs": 1}):
        with pytest.raises(UsageError, match="parity"):
            ParityLimits(**wrong)
