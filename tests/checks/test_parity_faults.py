"""Faults planted in five real architectures are caught and named; clean exports of every family raise no alarm."""

from pathlib import Path

import pytest

from tests.checks.faults import ARCHITECTURES, FAULTS, SIZE_PX, exported
from tests.checks.real import calibrated, photos_NCHW
from toolkit.backends import write_onnx
from toolkit.bundle import Preprocessing, Report
from toolkit.checks.parity import ParityLimits, parity

DIGEST = "cd" * 32
QUICK = ParityLimits(batches=[7], num_runs=3)
FAMILIES = {  # small or narrow variants of those that the faults leave out, at sizes they take
    "tests/densenet": 64,
    "tests/efficientnet_v2": 64,
    "torchvision/googlenet": 64,
    "torchvision/inception_v3": 96,
    "tests/maxvit": 64,
    "torchvision/mnasnet0_5": 64,
    "torchvision/mobilenet_v2": 64,
    "torchvision/regnet_x_400mf": 64,
    "torchvision/regnet_y_400mf": 64,
    "tests/resnext": 64,
    "torchvision/shufflenet_v2_x0_5": 64,
    "torchvision/squeezenet1_1": 64,
    "tests/swin": 64,
    "tests/swin_v2": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("key", ARCHITECTURES)
def test_every_fault_is_caught_where_it_is_and_the_clean_graph_passes(key: str, tmp_path: Path) -> None:
    export, images = exported(key), photos_NCHW(SIZE_PX)[:5]
    clean = parity(export.deployed, export.graph, images, subject=DIGEST, limits=ParityLimits(batches=[1, 7]))
    assert (clean.verdict, clean.details["warning"]) == ("pass", "")
    found = {}
    for plant in FAULTS:
        planted = plant(export, tmp_path)
        report = parity(planted.reference, planted.graph, images, subject=DIGEST, limits=QUICK)
        found[plant.__name__] = (report.verdict, planted.culprit in blamed(report), source(report).startswith("torchvision/"))
    expected = {plant.__name__: ("fail", True, plant.__name__ != "normalisation_changed") for plant in FAULTS}
    assert found == expected  # the normalisation is the toolkit's own: there is no line of the model to name


@pytest.mark.slow
@pytest.mark.parametrize(("key", "size_px"), FAMILIES.items())
def test_a_clean_export_raises_no_alarm(key: str, size_px: int, tmp_path: Path) -> None:
    deployed, graph = calibrated(key, size_px, num_classes=100, num_images=32), tmp_path / "model.onnx"
    labels = [str(label) for label in range(100)]
    write_onnx(deployed, graph, preprocessing=Preprocessing((size_px, size_px)), labels=labels)
    report = parity(deployed, graph, photos_NCHW(size_px)[:5], subject=DIGEST, limits=ParityLimits(batches=[1, 7], num_runs=3))
    assert report.verdict == "pass"
    assert report.value("float32_share") < 1e-3


def blamed(report: Report) -> tuple[str, ...]:
    culprit = report.details["fault"]["culprit"]
    return (*culprit["fused"], culprit["module"]) if culprit else ()


def source(report: Report) -> str:
    culprit = report.details["fault"]["culprit"]
    return culprit["source"] if culprit else ""
