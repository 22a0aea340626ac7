"""One temperature: found, judged on other images, written into the head, and nothing else changed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special

from tests.checks.planted import images, stored, trained, with_head
from toolkit.backends import open_runner
from toolkit.bundle import Store
from toolkit.checks.predict import predict
from toolkit.checks.temperature import calibrate as judge
from toolkit.checks.temperature import fit_temperature
from toolkit.data import load_pixels
from toolkit.errors import InputRefused, UsageError
from toolkit.models import restore
from toolkit.stages.calibrate import calibrate
from toolkit.stages.ensemble import ensemble


def drawn(num_samples: int, *, seed: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at `temperature` is the true distribution of the targets drawn from it."""
    generator = np.random.default_rng(seed)
    logits_NK = generator.normal(size=(num_samples, 4)) * 2
    targets_N = (special.softmax(logits_NK, axis=1).cumsum(1) < generator.random((num_samples, 1))).sum(1)
    return logits_NK * temperature, targets_N


def test_the_temperature_is_the_maximum_of_the_likelihood() -> None:
    logits_NK, targets_N = drawn(4000, seed=0, temperature=2.5)
    found = fit_temperature(logits_NK, targets_N)
    assert found == pytest.approx(2.5, rel=0.06)

    def loss(log_t: np.ndarray) -> float:
        return -special.log_softmax(logits_NK / np.exp(log_t[0]), axis=1)[np.arange(4000), targets_N].mean()

    other = optimize.minimize(loss, x0=[0.0], method="BFGS")
    assert found == pytest.approx(np.exp(other.x[0]), rel=1e-3)


def test_an_overconfident_model_is_helped_and_an_honest_one_is_left_alone() -> None:
    assert judge(*drawn(400, seed=1, temperature=3.0)).helps
    rate = np.mean([judge(*drawn(400, seed=seed)).helps for seed in range(100)])
    assert rate <= 0.06  # a two-sided 95% interval lies above no gain in 2.5%


def test_the_stage_writes_it_into_the_head_and_changes_no_answer(store: Store) -> None:
    loud = stored(store, with_head(trained(num_epochs=3, seed=1), scale=30.0))
    calm = calibrate(loud, store=store, data=images())
    report = store.reports(calm.digest)["calibration"]
    assert report.details["applied"]
    assert report.value("temperature") > 2
    assert (report.value("nll.difference") or 0) < 0
    pixels = load_pixels(images().split("test"), loud.manifest.preprocessing)
    before, after = (predict(open_runner(b, kind="eager"), pixels) for b in (loud, calm))
    np.testing.assert_allclose(after, before / report.value("temperature"), rtol=1e-4, atol=1e-4)
    assert (after.argmax(1) == before.argmax(1)).all()
    assert calm.manifest.lineage.parents == (loud.digest,)
    assert calibrate(loud, store=store, data=images()).digest == calm.digest
    assert calibrate(calm, store=store, data=images()).digest == calm.digest
    assert store.reports(calm.digest)["calibration"].details["applied"], "how it was calibrated is kept"


def test_a_bundle_that_needs_none_stays_and_the_report_says_so(store: Store) -> None:
    honest = calibrate(stored(store, trained(num_epochs=3, seed=1)), store=store, data=images())
    plain = stored(Store(store.root / "other"), restore(honest))
    other = Store(store.root / "other")
    assert calibrate(plain, store=other, data=images()).digest == plain.digest
    assert not other.reports(plain.digest)["calibration"].details["applied"]


def test_what_cannot_be_calibrated_is_refused(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=1))
    whole = images()
    val = [sample for sample in whole.samples if sample.split == "val"][:20]
    few = replace(whole, samples=(*(s for s in whole.samples if s.split != "val"), *val))
    assert calibrate(bundle, store=store, data=few).digest == bundle.digest
    assert store.reports(bundle.digest)["calibration"].verdict == "undecided"
    other = stored(store, trained(num_epochs=1), labels=("a", "b", "c"))
    with pytest.raises(InputRefused, match="its own labels"):
        calibrate(other, store=store, data=whole)
    both = ensemble([bundle, stored(store, trained(num_epochs=3, seed=1))], store=store)
    with pytest.raises(UsageError, match="members"):
        calibrate(both, store=store, data=whole)
    assert "calibration" not in store.reports(both.digest)
