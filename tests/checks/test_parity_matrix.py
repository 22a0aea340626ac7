"""The graph runs on every provider and at every level; what differs on one alone fails, what runs in TF32 is not judged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.backends.small import images_NCHW, small, written
from toolkit.backends import OnnxRunner
from toolkit.bundle import Report
from toolkit.checks import parity_matrix, parity_tf32
from toolkit.checks.parity import ParityLimits, parity
from toolkit.checks.parity_matrix import Device, devices_here, run_matrix

CPU = Device("cpu", (("CPUExecutionProvider", {}),))
CUDA = Device("cuda", (("CPUExecutionProvider", {"use_tf32": "0"}),))  # stands in for a card that this machine lacks
CUDA_TF32 = Device("cuda_tf32", (("CPUExecutionProvider", {"use_tf32": "1"}),), ("all",), tf32=True)
Wrong = Callable[..., bool]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clean"))[0]


def checked(graph: Path, monkeypatch: pytest.MonkeyPatch, devices: list[Device], wrong: Wrong, off: float = 0.001) -> Report:
    """Parity on these devices, with a runner whose answers are `off` where `wrong` says so, as a share."""

    class Spoilt(OnnxRunner):
        def __init__(self, path: Path, **rest: object) -> None:
            super().__init__(path, **rest)
            self.factor = np.float32(1 + off if wrong(**rest) else 1)

        def __call__(self, images: np.ndarray) -> np.ndarray:
            return super().__call__(images) * self.factor

    monkeypatch.setattr(parity_matrix, "OnnxRunner", Spoilt)
    monkeypatch.setattr(parity_matrix, "devices_here", lambda: devices)
    return parity(small(), graph, images_NCHW(), subject="cd" * 32, limits=ParityLimits(batches=[7]))


def in_tf32(*, providers: tuple, **_rest: object) -> bool:
    return providers[0][1].get("use_tf32") == "1"


@pytest.mark.parametrize(("off", "verdict"), [(2e-4, "pass"), (0.05, "fail")])
def test_tf32_is_held_against_a_floor_of_tf32(graph: Path, monkeypatch: pytest.MonkeyPatch, off: float, verdict: str) -> None:
    report = checked(graph, monkeypatch, [CPU, CUDA, CUDA_TF32], in_tf32, off)
    lines = {m.name: m for m in report.measurements}
    assert report.verdict == verdict
    assert lines["error_ratio.max"].passed
    assert lines["error_ratio.cuda_tf32"].passed is (verdict == "pass")
    assert 1e-5 < lines["tf32_share"].value < 0.05
    loose = [run["worst_ratio"] for run in report.details["runs"] if run["device"] == "cuda_tf32"]
    assert min(loose) > 100 * lines["error_ratio.max"].value  # in floors of float32 it would be a fault
    assert {"max_error.onnxruntime_all", "max_error.onnxruntime_all_cuda"} <= set(lines)
    assert report.details["devices"] == ["cpu", "cuda", "cuda_tf32"]
    assert report.details["tf32"]["onnxruntime"] == {"cuda": False, "cuda_tf32": True}
    assert set(report.details["tf32"]) == {"torch_matmul", "torch_cudnn", "onnxruntime", "sentence"}
    assert "with TF32 off. With TF32 on (cuda_tf32) it is held against a floor of TF32" in report.details["tf32"]["sentence"]


def test_where_tf32_excuses_anything_it_is_told_and_not_judged(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_tf32, "MAX_SHARE", 1e-9)
    report = checked(graph, monkeypatch, [CPU, CUDA_TF32], in_tf32, 0.05)
    assert report.verdict == "pass"
    assert next(m for m in report.measurements if m.name == "error_ratio.cuda_tf32").passed is None


def test_without_a_card_tf32_plays_no_part(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(graph, monkeypatch, [CPU], in_tf32)
    assert report.details["tf32"]["sentence"] == "TF32 plays no part: everything ran on the CPU."


@pytest.mark.parametrize(
    "wrong",
    [
        lambda **rest: rest["providers"] == CUDA.providers,
        *(lambda level=level, **rest: rest["optimisation"] == level for level in ("off", "basic", "all")),
    ],
    ids=["cuda", "off", "basic", "all"],
)
def test_an_error_on_one_provider_or_level_alone_fails(graph: Path, monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    report = checked(graph, monkeypatch, [CPU, CUDA], wrong)
    assert report.verdict == "fail"
    bad = {(run["device"], run["optimiser"]) for run in report.details["runs"] if run["worst_ratio"] > 8}
    assert 0 < len(bad) < len(report.details["runs"])
    assert "Without onnxruntime's optimiser every module's output lies within its noise" in report.details["fault"]["sentence"]


def test_the_devices_are_those_of_the_installed_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    for override, loose in ((None, {"cuda_tf32", "tensorrt"}), ("0", {"cuda_tf32"})):
        if override:
            monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
        found = devices_here()
        assert [device.name for device in found] == ["cpu", "cuda", "cuda_tf32", "tensorrt"]
        assert {device.name for device in found if device.tf32} == loose
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names[2:])
    assert [device.name for device in devices_here()] == ["cpu"]


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_cannot_start_is_reported_and_never_replaced(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the provider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    outcomes, unusable = run_matrix(graph, images_NCHW()[:3], batches=[2], num_labels=3)
    assert {outcome.device.name for outcome in outcomes} == {"cpu"}
    assert set(unusable) == {"cuda", "cuda_tf32"}
    assert "could not start CUDAExecutionProvider and fell back to CPUExecutionProvider" in unusable["cuda"]
