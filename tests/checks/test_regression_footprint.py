"""What a model needs by itself: a heavier one shows as heavier, exported or not."""

from pathlib import Path

import numpy as np
import pytest

from tests.checks.planted import stored, trained
from tests.migration.graph_forms import FORMS, write_form
from toolkit.bundle import Bundle, Measurement, Store
from toolkit.checks.regression_cost import served_graphs
from toolkit.checks.regression_footprint import footprint_measurements
from toolkit.stages.adopt import adopt

IMAGES = {side: np.full((1, 3, 32, 32), 128, np.float32) for side in ("baseline", "candidate")}


def measured(old: Bundle, new: Bundle) -> dict[str, Measurement]:
    bundles = {"baseline": old, "candidate": new}
    with served_graphs(bundles) as graphs:
        return {m.name: m for m in footprint_measurements(bundles, graphs, IMAGES, batch=16)}


def test_a_wide_model_answers_fewer_images_a_second_and_takes_more_memory(store: Store, tmp_path: Path) -> None:
    old = stored(store, trained(num_epochs=0, width=8), width=8, graph=tmp_path / "old.onnx")
    new = stored(store, trained(num_epochs=0, width=256), width=256)  # not exported
    held = store.digests()
    found = measured(old, new)
    assert ratio(found, "throughput") < 0.5
    assert ratio(found, "memory") > 1.5
    assert found["throughput.baseline"].unit == "images/s"
    size = sum(tensor.numel() * tensor.element_size() for tensor in new.weights().values()) / 2**20
    assert size < (found["memory.candidate"].value or 0) < 40 * size
    assert (found["load_time.candidate"].value or 0) > 0
    assert store.digests() == held


@pytest.mark.parametrize("form", ["uint8_nhwc", "fixed_batch"])
def test_a_graph_in_service_is_measured_as_it_is_served(form: str, store: Store, tmp_path: Path) -> None:
    old = adopt("onnx", store=store, checkpoint=write_form(form, tmp_path / "old.onnx"), **FORMS[form])
    found = measured(old, old)
    assert ratio(found, "throughput") == pytest.approx(1, abs=0.5)


def ratio(found: dict[str, Measurement], metric: str) -> float:
    value = found[f"{metric}.ratio"].value
    assert value is not None
    return value
