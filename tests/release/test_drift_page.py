"""The pages of drift and monitoring: well-formed, self-contained, safe against names from outside, right in a browser."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checks.planted import stored, trained
from tests.checks.test_drift import arrived, reference
from tests.release.outline import Outline
from tests.release.test_page_browser import CHROMIUM, browse
from tests.stages.monitoring import lines, thresholds
from toolkit.bundle import Bundle, Report, Store
from toolkit.checks import obsolescence
from toolkit.checks.drift import drift
from toolkit.checks.profile import make_profile
from toolkit.release.drift_page import write_drift
from toolkit.release.monitor_page import render_monitor
from toolkit.stages.monitor import monitor

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def bundle(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(obsolescence, "_exports", lambda *_: "not tried")
    return stored(store, trained(num_epochs=8), labels=("circle", "square", EVIL))


@pytest.fixture
def report(store: Store, bundle: Bundle) -> Report:
    profile = make_profile(bundle, reference(), store=store)
    return drift(bundle, profile, arrived(lambda pixels: pixels // 2), thresholds=thresholds())


def watched(store: Store, bundle: Bundle, tmp_path: Path) -> Path:
    make_profile(bundle, reference(), store=store)
    (tmp_path / "in").mkdir()
    for seed in range(4):
        told = lines(120, seed=seed, shares=(0.7, 0.2, 0.1), right=0.9).replace(b'"triangle"', f'"{EVIL}"'.encode())
        (tmp_path / "in" / f"{seed}.jsonl").write_bytes(told)
        monitor(bundle, store=store, source=str(tmp_path / "in"), thresholds=thresholds(), output=tmp_path / "out")
    return tmp_path / "out" / "monitor.html"


def test_drift_page_is_well_formed_and_names_from_outside_stay_text(report: Report, tmp_path: Path) -> None:
    page = write_drift(report, arrived(), tmp_path / "drift.html").read_text()
    outline = Outline(page)
    assert all(address.startswith("data:") for address in outline.addresses)
    assert all(outline.alts)
    outline.require_own_script()
    assert "&lt;script&gt;" in page


def test_undecided_drift_has_a_page_too(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    profile = make_profile(bundle, reference(), store=store, max_samples=60)
    few = drift(bundle, profile, arrived(), thresholds=thresholds())
    page = write_drift(few, None, tmp_path / "drift.html").read_text()
    Outline(page)
    assert "Not enough data to say" in page


def test_monitor_page_is_well_formed_before_and_after_the_first_sample(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    page = watched(store, bundle, tmp_path).read_text()
    assert "&lt;script&gt;" in page
    Outline(page).require_own_script()
    (tmp_path / "empty").mkdir()
    quiet = monitor(bundle, store=store, source=str(tmp_path / "empty"), thresholds=thresholds(), output=tmp_path / "new")
    assert quiet.verdict == "undecided"
    Outline(render_monitor(quiet))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_both_pages_render_without_console_messages_and_fit_a_phone(
    store: Store, bundle: Bundle, report: Report, tmp_path: Path
) -> None:
    pages = [write_drift(report, arrived(), tmp_path / "drift.html"), watched(store, bundle, tmp_path)]
    for number, page in enumerate(pages):
        picture = tmp_path / f"phone{number}.png"
        _, log = browse(page, "--window-size=500,9000", f"--screenshot={picture}")
        assert [line for line in log.splitlines() if ":CONSOLE:" in line] == []
        inked = (np.asarray(Image.open(picture).convert("L")) < 250).any(axis=0)
        assert inked[20:-20].any()
        assert not inked[-8:].any(), "something reaches the right edge: the page is wider than the screen"
