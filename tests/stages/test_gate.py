"""The stages around the verdict, run as the command line runs them: gate, evaluate, show, log, rollback."""

from pathlib import Path

import pytest

from tests.checks.planted import images, stored, trained
from tests.migration.graph_forms import write_form
from toolkit.bundle import Limit, Measurement, Report, Store
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.cli import main
from toolkit.errors import InputRefused, UsageError
from toolkit.release.page import render_page
from toolkit.release.tables import open_console, show_report
from toolkit.stages.adopt import adopt
from toolkit.stages.diff import diff
from toolkit.stages.evaluate import evaluate
from toolkit.stages.gate import gate
from toolkit.stages.log import log
from toolkit.stages.ls import ls
from toolkit.stages.release import release
from toolkit.stages.rollback import rollback
from toolkit.stages.show import show

LIMITS = GateLimits(
    {
        "accuracy": Rule("accuracy.difference", ">=", -0.03, reason="planted", judged_by="interval"),
        "parity": Rule("parity.passed", "==", 1, reason="planted"),
    }
)


def test_gate_takes_parity_from_the_store_and_keeps_its_report_beside_the_candidate(store: Store, tmp_path: Path) -> None:
    baseline = stored(store, trained(num_epochs=3, seed=1), graph=tmp_path / "old.onnx")
    candidate = stored(store, trained(num_epochs=8), graph=tmp_path / "new.onnx")
    first = gate(candidate, store=store, baseline=baseline, data=images(), limits=LIMITS, latency_rounds=10)
    assert first.verdict == "undecided"
    store.add_report(
        Report("parity", (candidate.digest,), "pass", (Measurement("x", 1.0, limit=Limit("<=", 2.0), passed=True),))
    )
    report = gate(candidate, store=store, baseline=baseline, data=images(), limits=LIMITS, latency_rounds=10)
    assert report.verdict == "pass"
    assert store.reports(candidate.digest)["gate"].measurements == report.measurements


def test_a_breaking_candidate_is_judged_and_released_behind_an_adapter(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_form("uint8_nhwc", tmp_path / "old.onnx", num_epochs=3)
    labels = ["triangle", "circle", "square"]
    old = adopt("onnx", store=store, checkpoint=path, labels=labels, alias="production")
    new = stored(store, trained(num_epochs=8), graph=tmp_path / "new.onnx")
    contract = Rule("contract.breaking", "==", 0, reason="Callers stay.")
    limits = GateLimits({**LIMITS.rules, "contract": contract})
    plain = gate(new, store=store, baseline=old, data=images(), limits=limits, latency_rounds=10)
    assert plain.value("contract.breaking") == 2  # the order of the labels, the name of the input
    report = gate(new, store=store, baseline=old, data=images(), limits=limits, latency_rounds=10, adapt=True)
    assert report.verdict == "pass"
    assert report.details["contract"] == []
    assert report.value("accuracy.candidate") == plain.value("accuracy.candidate")
    adapted = store.open(report.subjects[0])
    assert store.ancestors(adapted) == [new]
    show_report(report, open_console())
    said = capsys.readouterr().out
    page = render_page(store, adapted, baseline=old, images=None, alias="production")
    for step in report.details["adaptation"]["steps"]:
        assert step in said
        assert step.replace("'", "&#39;") in page
    release(adapted, store=store, baseline=old, data=images(), output=tmp_path / "out")
    assert store.aliases.current("production") == adapted.digest
    again = gate(new, store=store, baseline=adapted, data=images(), limits=limits, latency_rounds=10, adapt=True)
    assert again.verdict == "pass"


def test_too_few_latency_rounds_are_refused(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=8))
    with pytest.raises(UsageError, match="latency_rounds"):
        gate(bundle, store=store, baseline=bundle, data=images(), limits=LIMITS, latency_rounds=2)


def test_evaluate_show_log_and_ls_speak_of_the_bundle(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    bundle = stored(store, trained(num_epochs=8))
    report = evaluate(bundle, store=store, data=images())
    store.aliases.promote("production", bundle.digest)
    show("production", store=store)
    log("production", store=store)
    ls(store=store)
    out = capsys.readouterr().out
    assert f"{100 * report.value('balanced_accuracy'):.1f}%" in out
    assert "tests/tiny" in out
    assert out.count(bundle.short) >= 3


def test_rollback_returns_to_the_bundle_before_and_never_to_a_damaged_one(store: Store) -> None:
    old, new = stored(store, trained(num_epochs=3, seed=1)), stored(store, trained(num_epochs=8))
    for bundle in (old, new):
        store.aliases.promote("production", bundle.digest)
    weights = old.path / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputRefused, match="corrupt"):
        rollback("production", store=store)
    assert store.aliases.current("production") == new.digest
    weights.write_bytes(content)
    assert rollback("production", store=store).digest == old.digest
    with pytest.raises(UsageError, match="no earlier bundle"):
        rollback("production", store=store)


def test_diff_shows_the_gate_between_two_bundles_else_their_evaluations(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    old = stored(store, trained(num_epochs=3, seed=1), graph=tmp_path / "old.onnx")
    new = stored(store, trained(num_epochs=8, size_px=64), size_px=64, graph=tmp_path / "new.onnx")
    store.aliases.promote("production", old.digest)
    main_without_exit(["diff", "production", new.digest, f"store={store.root}"])
    out = capsys.readouterr().out
    assert "toolkit gate" in out
    assert "64×64 px" in out
    assert "compatible" in out

    figures = [evaluate(bundle, store=store, data=images()).value("accuracy") or 0 for bundle in (old, new)]
    diff(old, new=new, store=store)
    out = capsys.readouterr().out
    assert f"{100 * (figures[1] - figures[0]):+.1f} pp".replace("-", "−") in out
    assert "not paired" in out

    gate(new, store=store, baseline=old, data=images(), limits=LIMITS, latency_rounds=10)
    diff(old, new=new, store=store)
    out = capsys.readouterr().out
    assert "Verdict" in out
    assert "not paired" not in out
    diff(new, new=new, store=store)
    assert "identical" in capsys.readouterr().out


def main_without_exit(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
