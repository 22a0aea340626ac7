"""The maps show what decides: a planted model that sees one corner only is found out."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.checks.planted import PREPROCESSING, images, stored, trained
from toolkit.backends import open_runner
from toolkit.bundle import Architecture, Bundle, Lineage, Manifest, Report, Store
from toolkit.checks.attribution import GRID, Explained, attribute, explain
from toolkit.checks.evaluate import predict_bundle
from toolkit.checks.flips import Flips
from toolkit.checks.regression import regression
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.data import Pixels, load_pixels
from toolkit.models import pixel_contract, register
from toolkit.stages.ensemble import ensemble

pytest.importorskip("captum")


class OneCorner(nn.Module):
    """Counts bright pixels of the upper left or the lower right quarter; nothing else reaches its logits."""

    def __init__(self, num_classes: int = 3, *, upper: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, num_classes)
        self.upper = upper

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        maps_NCHW = torch.relu(self.second(torch.relu(self.first(images_NCHW))))
        corner = slice(0, 16) if self.upper else slice(16, 32)
        return self.head(maps_NCHW[:, :, corner, corner].mean((2, 3)))


def corner(num_classes: int = 3, upper: bool = True) -> nn.Module:
    return OneCorner(num_classes, upper=upper)


register("tests/corner", corner, PREPROCESSING)


def corner_bundle(store: Store, *, upper: bool) -> Bundle:
    net = OneCorner(upper=upper)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_().add_(0.1)
        net.head.weight[1].mul_(5)
    architecture = Architecture("tests/corner", {"num_classes": 3, "upper": upper})
    contract = pixel_contract(PREPROCESSING, 3)
    manifest = Manifest(architecture, images().labels, PREPROCESSING, contract, Lineage("adopt"))
    return store.add(manifest, weights=net.state_dict())


def bright(num: int = 4) -> torch.Tensor:
    return torch.full((num, 3, 32, 32), 220, dtype=torch.uint8)


@pytest.mark.parametrize("upper", [True, False])
def test_the_map_lies_on_what_reaches_the_logits(store: Store, upper: bool) -> None:
    found = attribute(corner_bundle(store, upper=upper), bright(), [1] * 4)
    assert isinstance(found, Explained)
    assert found.layer == "second"
    assert found.maps_NGG.shape == (4, GRID, GRID)
    half = GRID // 2
    inside = found.maps_NGG[:, :half, :half] if upper else found.maps_NGG[:, half:, half:]
    assert inside.sum() > 0.9 * found.maps_NGG.sum()
    assert found.maps_NGG.max() == pytest.approx(1)


def test_models_that_look_elsewhere_disagree_and_a_model_agrees_with_itself(store: Store) -> None:
    pixels = load_pixels(images().split("test"), PREPROCESSING).take(list(range(60)))
    upper, lower = corner_bundle(store, upper=True), corner_bundle(store, upper=False)
    apart = compared(upper, lower, pixels)
    same = compared(upper, upper, pixels)
    assert same["attribution_agreement.agreement"] == pytest.approx(1)
    assert apart.get("attribution_agreement.agreement", -1.0) < 0.3
    good = stored(store, trained(num_epochs=8))
    assert compared(good, good, pixels)["attribution_agreement.agreement"] == pytest.approx(1)


def compared(old: Bundle, new: Bundle, pixels: Pixels) -> dict[str, float | None]:
    flips = Flips(predict_bundle(old, pixels), predict_bundle(new, pixels))
    measurements, details = explain({"baseline": old, "candidate": new}, {"baseline": pixels, "candidate": pixels}, flips)
    for found in details["maps"].values():
        assert np.shape(found["baseline"]) == np.shape(found["candidate"]) == (GRID, GRID)
    return {m.name: m.value for m in measurements}


def test_attribution_leaves_the_answers_and_the_bundle_alone(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=3, seed=1))
    before = open_runner(bundle, kind="eager")(bright().numpy().astype(np.float32))
    attribute(bundle, bright(), [0] * 4)
    np.testing.assert_array_equal(
        open_runner(store.open(bundle.digest), kind="eager")(bright().numpy().astype(np.float32)), before
    )


def test_where_there_are_no_maps_the_report_says_why(store: Store) -> None:
    one, two = stored(store, trained(num_epochs=1)), stored(store, trained(num_epochs=3, seed=1))
    both = ensemble([one, two], store=store)
    limits = GateLimits({"labels": Rule("contract.labels_identical", "==", 1, reason="planted")})
    report: Report = regression(both, one, images(), limits=limits, latency_rounds=10)
    assert "ensemble" in report.details["attributions"]["reason"]
    assert not [m for m in report.measurements if m.name.startswith("attribution")]
