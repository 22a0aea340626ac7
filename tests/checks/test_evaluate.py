"""One bundle measured on a data set, against scikit-learn on the same predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from tests.checks.planted import PREPROCESSING, images, stored, trained, with_head
from toolkit.bundle import Report, Store
from toolkit.checks.evaluate import evaluate
from toolkit.data import load_pixels
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed


def answers(net: torch.nn.Module) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, probabilities and slices on the test split, by plain torch."""
    pixels = load_pixels(images().split("test"), PREPROCESSING)
    with torch.no_grad():
        logits_NK = Deployed(net, PREPROCESSING)(pixels.images_NCHW.float())
    return pixels.targets_N.numpy(), logits_NK.double().softmax(1).numpy(), np.array(pixels.slices)


def test_measurements_are_those_of_scikit_learn_overall_by_slice_and_by_label(store: Store) -> None:
    net = trained(num_epochs=4)
    report = evaluate(stored(store, net), images())
    targets_N, probabilities_NK, slices_N = answers(net)
    classes_N = probabilities_NK.argmax(1)
    assert report.value("accuracy") == pytest.approx(reference.accuracy_score(targets_N, classes_N))
    assert report.value("roc_auc") == pytest.approx(
        reference.roc_auc_score(targets_N, probabilities_NK, multi_class="ovr"), abs=1e-6
    )
    dark = slices_N == "dark"
    assert report.value("balanced_accuracy[slice=dark]") == pytest.approx(
        reference.balanced_accuracy_score(targets_N[dark], classes_N[dark])
    )
    recalls = reference.recall_score(targets_N, classes_N, average=None)
    for label, recall in zip(images().labels, recalls, strict=True):
        assert report.value(f"recall[label={label}]") == pytest.approx(recall)
    assert report.details["data"]["num_samples"] == len(targets_N)
    assert Report.from_json(report.to_json(), "here") == Report.from_json(report.to_json(), "there")


def test_intervals_hold_the_value_and_repeat_with_the_seed(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=4))
    report = evaluate(bundle, images(), seed=1)
    assert report.measurements == evaluate(bundle, images(), seed=1).measurements
    for measurement in report.measurements:
        if measurement.interval is not None:
            assert measurement.value is not None
            assert measurement.interval[0] <= measurement.value <= measurement.interval[1]


def test_labels_are_matched_by_name_not_by_position(store: Store) -> None:
    net = trained(num_epochs=4)
    labels = images().labels
    moved = stored(store, with_head(net, order=(2, 0, 1)), labels=(labels[2], labels[0], labels[1]))
    assert evaluate(moved, images()).value("accuracy") == evaluate(stored(store, net), images()).value("accuracy")


def test_other_labels_and_an_unknown_split_are_refused(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=4), labels=("cat", "dog", "cow"))
    with pytest.raises(InputRefused, match=r"knows the labels cat, dog, cow"):
        evaluate(bundle, images())
    with pytest.raises(UsageError, match="split"):
        evaluate(bundle, images(), split="tset")


def test_a_model_with_nan_weights_is_refused(store: Store) -> None:
    with pytest.raises(InputRefused, match="not finite"):
        evaluate(stored(store, with_head(trained(num_epochs=4), scale=float("nan"))), images())


def test_a_split_with_one_class_leaves_the_curve_undefined(store: Store) -> None:
    only = replace(images(), samples=tuple(s for s in images().samples if s.target == 0))
    report = evaluate(stored(store, trained(num_epochs=4)), only)
    undefined = {m.name: m.value for m in report.measurements}
    assert undefined["roc_auc"] is None
    assert undefined["accuracy"] is not None
