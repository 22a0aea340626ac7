"""The look at drift inside a release and an upgrade, and `toolkit drift` as a command."""

import functools
from pathlib import Path

import pytest

from tests.checks.planted import images, stored, trained
from tests.checks.test_drift import arrived, reference
from tests.stages.monitoring import thresholds
from toolkit.bundle import Bundle, Store
from toolkit.checks import obsolescence
from toolkit.checks.profile import load_profile, make_profile
from toolkit.release.page import render_page
from toolkit.release.tables import open_console, show_report
from toolkit.stages.drift import drift
from toolkit.stages.release import release
from toolkit.stages.upgrade import Predecessor, _tell_drift


@pytest.fixture
def bundle(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(obsolescence, "_exports", lambda *_: "not tried")
    return stored(store, trained(num_epochs=8))


def test_a_release_with_data_makes_the_profile_and_one_without_does_not(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    release(bundle, store=store, required=[], output=tmp_path)
    assert load_profile(store, bundle) is None
    release(bundle, store=store, required=[], data=images(), output=tmp_path)
    profile = load_profile(store, bundle)
    assert profile is not None
    assert profile.report.details["data"]["split"] == "test"
    assert store.open("production").digest == bundle.digest


def test_the_command_shows_decision_and_reasons_and_the_release_page_what_drifted(
    store: Store, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    data = arrived(lambda pixels: pixels // 2)
    report = drift(bundle, store=store, data=data, reference=reference(), thresholds=thresholds(), run_dir=tmp_path)
    show_report(report, open_console())
    out = capsys.readouterr().out
    assert "Decision: " in out
    assert "beyond chance" in out
    assert report.details["reasons"][0].split()[0] in out
    page = render_page(store, bundle, baseline=bundle, images=data, alias="production")
    assert "What drifted" in page
    assert "New images least like the old ones" in page
    assert "What drifted" not in render_page(store, bundle, baseline=None, images=data, alias="production")


def test_an_upgrade_looks_at_drift_where_it_has_something_to_compare_with(
    store: Store, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = functools.partial(drift, thresholds=thresholds(), max_samples=250)
    _tell_drift(bundle, store=store, data=arrived(), step=step, predecessor=None, run_dir=tmp_path)
    assert "data@reference" in " ".join(capsys.readouterr().out.split())
    assert "drift" not in store.reports(bundle.digest)
    predecessor = Predecessor(lambda: bundle, lambda: bundle, reference())
    _tell_drift(bundle, store=store, data=arrived(), step=step, predecessor=predecessor, run_dir=tmp_path)
    assert store.reports(bundle.digest)["drift"].details["decision"] == "keep"
    make_profile(bundle, reference(), store=store)
    _tell_drift(bundle, store=store, data=arrived(), step=step, predecessor=None, run_dir=tmp_path)
    assert (tmp_path / "drift" / "drift.html").is_file()
