"""Drift end to end: an unchanged source alarms no more often than promised, changed ones alarm, each for its own reason."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.checks.planted import images, stored, trained
from tests.stages.monitoring import thresholds
from toolkit.bundle import Bundle, Report, Store
from toolkit.checks import drift as drift_module
from toolkit.checks import drift_performance, obsolescence
from toolkit.checks.drift import drift, measure
from toolkit.checks.metrics import Predictions
from toolkit.checks.observed import Observed
from toolkit.checks.profile import Profile, make_profile
from toolkit.data import ImageSet
from toolkit.errors import InputRefused, UsageError
from toolkit.stages.drift import drift as stage

DIMS, CLASSES = 12, 3


@pytest.fixture(autouse=True)
def _no_trial_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes seconds; that it is tried stands in the tests of obsolescence."""
    monkeypatch.setattr(obsolescence, "_exports", lambda *_: "not tried")


@pytest.fixture
def bundle(store: Store) -> Bundle:
    found = stored(store, trained(num_epochs=8))
    make_profile(found, reference(), store=store, split="test")
    return found


def reference() -> ImageSet:
    """Half of the test images; the other half is what arrives."""
    chosen = images().split("test")
    return dataclasses.replace(chosen, samples=chosen.samples[:260])


def arrived(change=lambda pixels: pixels, *, relabel=lambda target: target) -> ImageSet:
    chosen = images().split("test")
    samples = [
        dataclasses.replace(s, source=change(np.asarray(s.source)), target=relabel(s.target)) for s in chosen.samples[260:]
    ]
    return dataclasses.replace(chosen, samples=tuple(samples))


def check(store: Store, bundle: Bundle, data: ImageSet) -> Report:
    profile = make_profile(bundle, reference(), store=store)
    return drift(bundle, profile, data, thresholds=thresholds())


def synthetic(num: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Predictions]:
    """Embeddings, statistics and calibrated predictions of one source; statistics, as real ones, hang together."""
    embeddings = generator.normal(size=(num, DIMS)) * np.linspace(1, 2, DIMS)
    light = embeddings[:, :1] + 0.5 * generator.normal(size=(num, 7))
    logits = embeddings[:, :CLASSES] * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([generator.choice(CLASSES, p=row) for row in shares])
    return embeddings, np.round(light, 2), Predictions.from_logits(logits, targets)


def pair(seed: int, num_reference: int = 160, num_new: int = 120) -> tuple[Profile, Observed]:
    generator = np.random.default_rng(seed)
    embeddings, statistics, predictions = synthetic(num_reference, generator)
    report = Report("profile", ("0" * 64,), "pass", details={"embedding": {"source": "x"}})
    profile = Profile(
        report, predictions, statistics, embeddings[40:], np.zeros(DIMS), np.eye(DIMS), frozenset(), ("",) * num_reference
    )
    features, statistics, predictions = synthetic(num_new, generator)
    names = tuple(map(str, range(num_new)))
    return profile, Observed(predictions, features, statistics, names, ("",) * num_new, names, "x")


def test_an_unchanged_source_raises_no_more_alarms_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("probe", "estimated_change"):  # raise no alarm by themselves
        monkeypatch.setattr(drift_module, name, lambda *_, **__: None)
    monkeypatch.setattr(drift_performance, "bootstrap", lambda f, **_: {name: np.zeros(10) for name in f})
    shown = []
    for seed in range(200):
        found = measure(*pair(seed), thresholds(), num_permutations=199, seed=seed)
        shown.append(min(found.adjusted.values()) <= 0.05)
    assert np.mean(shown) <= 0.05 + 1.65 * np.sqrt(0.05 * 0.95 / 200), "over all families together"


def test_the_same_source_is_kept(store: Store, bundle: Bundle) -> None:
    report = check(store, bundle, arrived())
    assert (report.verdict, report.details["decision"]) == ("pass", "keep")
    assert all(not test["beyond_chance"] for test in report.details["tests"])


def test_blurred_images_alarm_and_the_page_shows_what_moved(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    def blur(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)))

    data = arrived(blur)
    report = stage(bundle, store=store, data=data, thresholds=thresholds(), run_dir=tmp_path)
    assert report.verdict == "fail"
    assert report.details["decision"] in ("retrain", "transfer", "investigate")
    moved = {one["name"]: one["ks"] for one in report.details["statistics"]}
    assert moved["noise"] == 1.0
    assert moved["size"] == 0.0
    page = (tmp_path / "drift.html").read_text()
    assert page.count("data:image/jpeg") >= 12
    assert "Pixel noise" in page
    assert store.reports(bundle.digest)["drift"].details["decision"] == report.details["decision"]


def test_changed_labels_on_the_same_images_are_for_a_person_to_investigate(store: Store, bundle: Bundle) -> None:
    report = check(store, bundle, arrived(relabel=lambda target: (target + 1) % 3))
    assert report.details["decision"] == "investigate"
    assert "meaning may have changed" in report.details["reasons"][0]
    assert report.value("accuracy.loss") > 0.5


def test_a_label_the_model_cannot_give_asks_for_transfer(store: Store, bundle: Bundle) -> None:
    data = arrived()
    report = check(store, bundle, dataclasses.replace(data, labels=(*data.labels[:2], "hexagon")))
    assert report.details["decision"] == "transfer"
    assert "hexagon" in report.details["reasons"][0]


def test_unlabelled_data_that_looks_the_same_is_kept_and_else_needs_labels(store: Store, bundle: Bundle) -> None:
    def unlabelled(data: ImageSet) -> ImageSet:
        return dataclasses.replace(
            data, labels=("unknown",), samples=tuple(dataclasses.replace(s, target=0) for s in data.samples)
        )

    same = check(store, bundle, unlabelled(arrived()))
    assert same.details["decision"] == "keep"
    assert "accuracy.loss" not in {m.name for m in same.measurements}
    dark = check(store, bundle, unlabelled(arrived(lambda pixels: pixels // 3)))
    assert dark.details["decision"] in ("investigate", "transfer", "retrain")
    assert dark.verdict == "fail"


def test_too_few_images_are_undecided_and_the_reference_itself_is_no_new_data(store: Store, bundle: Bundle) -> None:
    few = arrived()
    report = check(store, bundle, dataclasses.replace(few, samples=few.samples[:60]))
    assert (report.verdict, report.details["decision"]) == ("undecided", "undecided")
    assert "60 new images" in report.details["reasons"][0]
    with pytest.raises(UsageError, match="already"):
        check(store, bundle, reference())


def test_a_bundle_without_a_profile_or_with_another_ones_is_refused(store: Store, tmp_path: Path) -> None:
    stranger = stored(store, trained(num_epochs=3, seed=1))
    with pytest.raises(UsageError, match="data@reference"):
        stage(stranger, store=store, data=arrived(), thresholds=thresholds(), run_dir=tmp_path)
    profile = make_profile(stranger, reference(), store=store)
    exported = stored(store, trained(num_epochs=8), graph=tmp_path / "net.onnx")
    with pytest.raises(InputRefused, match="was made from"):
        drift(exported, profile, arrived(), thresholds=thresholds())
