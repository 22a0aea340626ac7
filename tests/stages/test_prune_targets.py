"""The stage's targets beyond multiply-accumulates: milliseconds, and what the validation images allow."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onnxruntime import get_available_providers
from torch import nn

from tests.stages.pruning import OPTIONS, RECOVERY
from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.data import ImageSet
from toolkit.data.shapes import shapes
from toolkit.errors import EnvironmentProblem, UsageError
from toolkit.models import pixel_contract, register
from toolkit.pruning import CRITERIA, Target
from toolkit.stages.prune import prune


def widenet(num_classes: int = 2) -> nn.Module:
    """Wide enough for its latency to be that of its convolutions."""
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 128)):
        body += [nn.Conv2d(before, after, 3, stride=2 if before == 3 else 1, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=80, size_px=32, num_labels=2)


@pytest.fixture(scope="module")
def wide(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    register("widenet", widenet)
    spec, architecture = Preprocessing(size_px=(32, 32)), Architecture("widenet", {"num_classes": 2})
    manifest = Manifest(architecture, tuple(data.labels), spec, pixel_contract(spec, 2), lineage("adopt"))
    return Store(tmp_path_factory.mktemp("wide")).add(manifest, weights=widenet().state_dict())


def test_a_latency_target_is_predicted_measured_and_kept_through_a_resume(
    wide: Bundle, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, round_to="auto", sensitivity=True, curve=(0.5,))
    settings = {"data": data, "target": Target(latency=0.6), "criterion": CRITERIA["magnitude"](), "options": options}
    store = Store(tmp_path / "store")
    child = prune(wide, store=store, run_dir=tmp_path / "run", recovery=RECOVERY, **settings)
    report = store.reports(child.digest)["pruning"]
    wanted, measured = report.value("latency_goal.wanted"), report.value("latency_goal.measured")
    search = report.details["search"]
    assert report.value("latency_goal.predicted") > 0  # how near it comes is the clock's affair: docs/pruning.md
    assert report.value("latency_goal.measured_to_wanted") == pytest.approx(measured / wanted)
    assert 1 <= len(search["tried"]) <= 3
    assert report.details["round_to"] in (8, 16)
    assert report.details["curve"][0]["macs"] == 1
    assert {one["group"] for one in report.details["sensitivity"]} == {"0", "3", "6"}
    page = (tmp_path / "run" / "pruning.html").read_text()
    assert page.count('class="plot"') == 4
    assert "How the target was found" in page

    def decided_anew(*args: object, **kwargs: object) -> None:
        raise AssertionError("the clock was asked again")

    monkeypatch.setattr("toolkit.stages.prune.prune_to", decided_anew)
    other = Store(tmp_path / "other")
    again = prune(wide, store=other, run_dir=tmp_path / "unused", recovery=RECOVERY, resume=tmp_path / "run", **settings)
    assert again.digest == child.digest


def test_a_latency_above_the_models_own_is_refused(wide: Bundle, data: ImageSet, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(UsageError, match="needs no pruning"):
        prune(wide, store=store, data=data, run_dir=tmp_path, target=Target(latency_ms=1e4), options=OPTIONS, recovery=RECOVERY)
    assert store.digests() == []


def test_an_allowed_loss_of_accuracy_decides_how_far(wide: Bundle, data: ImageSet, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    child = prune(
        wide,
        store=store,
        data=data,
        run_dir=tmp_path / "run",
        target=Target(accuracy_drop=0.4),
        criterion=CRITERIA["magnitude"](),
        options=OPTIONS,
        recovery=RECOVERY,
    )
    report = store.reports(child.digest)["pruning"]
    tried = report.details["search"]["tried"]
    assert min(one["macs"] for one in tried if one["drop"] <= 0.4) == pytest.approx(report.value("macs.ratio"), abs=0.1)
    drop = report.value("accuracy.baseline[split=val]") - report.value("accuracy.candidate[split=val]")
    assert report.value("accuracy_goal.drop[split=val]") == pytest.approx(drop)


@pytest.mark.skipif("CUDAExecutionProvider" in get_available_providers(), reason="the device is there")
def test_a_device_that_is_not_there_is_refused_before_anything_is_done(wide: Bundle, data: ImageSet, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    target = Target(macs=0.5, device="cuda")
    with pytest.raises(EnvironmentProblem, match="onnxruntime-gpu"):
        prune(wide, store=store, data=data, run_dir=tmp_path / "run", target=target, options=OPTIONS, recovery=RECOVERY)
    assert not (tmp_path / "run").exists()
