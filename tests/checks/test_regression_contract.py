"""Contract differences are named with their severity."""

from dataclasses import replace
from typing import Any

import pytest

from toolkit.bundle import Architecture, Contract, Manifest, Preprocessing, TensorSpec, lineage
from toolkit.checks.regression_contract import contract_differences, contract_measurements

IMAGES = TensorSpec("images", "float32", ("batch", 3, 32, 32), "NCHW", "pixels", (0.0, 255.0))
LOGITS = TensorSpec("logits", "float32", ("batch", 2), "NK", "logits")
OLD = Manifest(
    Architecture("torchvision/resnet18"),
    ("sound", "cracked"),
    Preprocessing((32, 32)),
    Contract((IMAGES,), (LOGITS,)),
    lineage("adopt"),
)


def differences(**changes: Any) -> dict[str, str]:
    return {d.item: d.severity for d in contract_differences(OLD, replace(OLD, **changes))}


def test_equal_contracts_have_no_differences() -> None:
    assert differences() == {}
    assert {m.name: m.value for m in contract_measurements(OLD, OLD)}["contract.labels_identical"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "uint8"), ("layout", "NHWC"), ("meaning", "normalised"), ("value_range", (0.0, 1.0))],
)
def test_an_input_that_means_something_else_breaks_callers(field: str, value: Any) -> None:
    changed = replace(IMAGES, **{field: value})
    assert differences(contract=Contract((changed,), (LOGITS,)))[f"inputs.images.{field}"] == "breaking"


def test_renamed_tensors_and_probabilities_for_logits_break_callers() -> None:
    assert differences(contract=Contract((replace(IMAGES, name="x"),), (LOGITS,))) == {"inputs.names": "breaking"}
    changed = Contract((IMAGES,), (replace(LOGITS, meaning="probabilities"),))
    assert differences(contract=changed) == {"outputs.logits.meaning": "breaking"}


def test_another_image_size_is_compatible_but_another_channel_count_is_not() -> None:
    larger = replace(IMAGES, dims=("batch", 3, 64, 64))
    assert differences(contract=Contract((larger,), (LOGITS,)), preprocessing=Preprocessing((64, 64))) == {
        "inputs.images.dims": "compatible",
        "preprocessing.size_px": "compatible",
    }
    grey = replace(IMAGES, dims=("batch", 1, 32, 32))
    assert differences(contract=Contract((grey,), (LOGITS,))) == {"inputs.images.dims": "breaking"}


def test_labels_in_another_order_or_other_labels_break_callers() -> None:
    assert differences(labels=("cracked", "sound")) == {"labels.order": "breaking"}
    (found,) = contract_differences(OLD, replace(OLD, labels=("sound", "dirty")))
    assert (found.item, found.severity) == ("labels", "breaking")
    assert "cracked" in found.baseline
    assert "dirty" in found.candidate
