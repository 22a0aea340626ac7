"""The gate stops a wrong upgrade for its own reason, lets a right one pass, and finds nothing between a model and itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.checks.planted import images, stored, trained, with_head
from toolkit.bundle import Bundle, Limit, Measurement, Report, Store
from toolkit.checks.regression import regression
from toolkit.checks.regression_limits import GateLimits, Rule

PARITY = Report("parity", ("0" * 64,), "pass", (Measurement("error_ratio", 1.0, limit=Limit("<=", 8.0), passed=True),))


def rule(measurement: str, relation: str, value: float, **rest) -> Rule:
    return Rule(measurement, relation, value, reason="planted", **rest)


LIMITS = GateLimits(
    {
        "accuracy": rule("accuracy.difference", ">=", -0.03, judged_by="interval"),
        "bright": rule("accuracy.difference", ">=", -0.05, judged_by="interval", slice="bright"),
        "slices": rule("worse_slices", "==", 0),
        "calibration": rule("nll.difference", "<=", 0.1, judged_by="interval"),
        "flips": rule("negative_flip_rate", "<=", 0.03),
        "labels": rule("contract.labels_identical", "==", 1),
        "contract": rule("contract.breaking", "==", 0),
        "parity": rule("parity.passed", "==", 1),
        "latency": rule("latency_median.ratio", "<=", 3.0),
        "size": rule("size.ratio", "<=", 3.0),
    }
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def good(shelf: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return stored(shelf, trained(num_epochs=8), graph=tmp_path_factory.mktemp("graph") / "good.onnx")


def judge(candidate: Bundle, baseline: Bundle, **rest) -> Report:
    return regression(
        candidate, baseline, images(), limits=LIMITS, parity=rest.pop("parity", PARITY), latency_rounds=30, **rest
    )


def broken(report: Report) -> set[str]:
    return {report.details["limits"][m.name]["rule"] for m in report.measurements if m.limit is not None and m.passed is False}


def test_a_bundle_against_itself_has_no_flips_an_identical_contract_and_passes(good: Bundle) -> None:
    report = judge(good, good)
    assert report.verdict == "pass"
    values = {m.name: m.value for m in report.measurements}
    for name, value in values.items():
        if ".difference" in name:
            assert value == 0, name
    assert values["negative_flip_rate"] == values["positive_flip_rate"] == values["churn"] == 0
    assert values["mcnemar_p"] == 1
    assert values["macs.ratio"] == values["size.ratio"] == values["parameters.ratio"] == 1
    assert report.details["flips"] == report.details["contract"] == []
    difference = next(m for m in report.measurements if m.name == "accuracy.difference")
    assert difference.interval == (0.0, 0.0)


def test_a_better_model_passes_and_the_report_holds_what_the_page_needs(shelf: Store, good: Bundle, tmp_path: Path) -> None:
    weak = stored(shelf, trained(num_epochs=3, seed=1), graph=tmp_path / "weak.onnx")
    report = judge(good, weak)
    assert report.verdict == "pass"
    assert report.value("accuracy.difference") > 0.05
    gain = report.value("positive_flip_rate") - report.value("negative_flip_rate")
    assert gain == pytest.approx(report.value("accuracy.difference"))
    num_flips = report.value("positive_flip_rate") + report.value("negative_flip_rate")
    assert len(report.details["flips"]) == round(num_flips * report.details["data"]["num_samples"])
    assert {"reliability", "roc", "confusion"} <= set(report.details["curves"]["candidate"])
    assert report.subjects == (good.digest, weak.digest)
    assert Report.from_json(report.to_json(), "here").measurements == report.measurements


def test_better_on_one_slice_and_worse_on_the_other_is_stopped_for_the_slice(
    shelf: Store, good: Bundle, tmp_path: Path
) -> None:
    report = judge(stored(shelf, trained(num_epochs=8, seed=2, bad_slice="bright"), graph=tmp_path / "planted.onnx"), good)
    assert {"bright", "slices"} <= broken(report)
    assert [s["slice"] for s in report.details["slices"] if s["result"] == "worse"] == ["bright"]


def test_labels_in_another_order_are_stopped_though_every_answer_is_right(shelf: Store, good: Bundle, tmp_path: Path) -> None:
    labels = images().labels
    moved = with_head(trained(num_epochs=8), order=(2, 0, 1))
    report = judge(stored(shelf, moved, labels=(labels[2], labels[0], labels[1]), graph=tmp_path / "planted.onnx"), good)
    assert broken(report) == {"labels", "contract"}
    assert report.value("churn") == 0


def test_outputs_exchanged_without_a_word_are_stopped_for_quality(shelf: Store, good: Bundle, tmp_path: Path) -> None:
    report = judge(stored(shelf, with_head(trained(num_epochs=8), order=(2, 0, 1)), graph=tmp_path / "planted.onnx"), good)
    assert {"accuracy", "flips"} <= broken(report)
    assert not {"labels", "contract"} & broken(report)


def test_an_overconfident_model_is_stopped_for_calibration_alone(shelf: Store, tmp_path: Path) -> None:
    net = trained(num_epochs=3, seed=1)
    modest = stored(shelf, net, graph=tmp_path / "modest.onnx")
    report = judge(stored(shelf, with_head(net, scale=60.0), graph=tmp_path / "sure.onnx"), modest)
    assert broken(report) == {"calibration"}
    assert report.value("churn") == 0


def test_a_slower_and_larger_model_is_stopped_for_its_cost(shelf: Store, good: Bundle, tmp_path: Path) -> None:
    report = judge(stored(shelf, trained(num_epochs=0, width=64), width=64, graph=tmp_path / "wide.onnx"), good)
    assert {"latency", "size"} <= broken(report)
    assert report.value("macs.ratio") > 20


def test_flips_beyond_the_budget_are_stopped_at_equal_accuracy(shelf: Store, good: Bundle, tmp_path: Path) -> None:
    other = stored(shelf, trained(num_epochs=4, seed=5), graph=tmp_path / "other.onnx")
    limits = GateLimits({"flips": rule("negative_flip_rate", "<=", 0.001)})
    report = regression(other, good, images(), limits=limits, latency_rounds=10)
    assert broken(report) == {"flips"}


@pytest.mark.parametrize(("parity", "verdict"), [(None, "undecided"), ("fail", "fail"), ("undecided", "undecided")])
def test_parity_that_is_missing_or_bad_decides(good: Bundle, parity: str | None, verdict: str) -> None:
    stored_parity = None if parity is None else Report("parity", (good.digest,), parity)
    report = judge(good, good, parity=stored_parity)
    assert report.verdict == verdict


def test_too_few_images_are_undecided_and_the_number_that_would_decide_is_told(
    shelf: Store, good: Bundle, tmp_path: Path
) -> None:
    test = images().split("test")
    few = replace(test, samples=test.samples[:60])
    other = stored(shelf, trained(num_epochs=8, seed=6), graph=tmp_path / "other.onnx")
    limits = GateLimits({"accuracy": LIMITS.rules["accuracy"]})
    report = regression(other, good, few, limits=limits, latency_rounds=10)
    told = report.details["limits"]["accuracy.difference"]
    assert report.verdict == "undecided"
    assert told["needed_samples"] > 60
    assert 0.03 < told["smallest_margin"] < 0.5


def test_a_bundle_that_was_never_exported_is_written_for_the_measurement(shelf: Store, good: Bundle) -> None:
    report = judge(stored(shelf, trained(num_epochs=8)), good)
    assert report.value("macs.ratio") == report.value("parameters.ratio") == 1
    assert report.value("latency_median.candidate") > 0
    assert report.value("churn") == 0
