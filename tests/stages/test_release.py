"""A release moves the alias and writes its documents, or does neither and says why."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checks.planted import PREPROCESSING, images, stored, trained
from toolkit.backends import open_runner
from toolkit.bundle import Bundle, Limit, Measurement, Report, Store
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.data import render
from toolkit.errors import CheckFailed, InputRefused
from toolkit.release.documents import CARD
from toolkit.stages.gate import gate
from toolkit.stages.release import release


@pytest.fixture
def candidate(store: Store, tmp_path: Path) -> Bundle:
    """A better model than the one in service, gated against it."""
    baseline = stored(store, trained(num_epochs=3, seed=1), graph=tmp_path / "old.onnx")
    store.aliases.promote("production", baseline.digest)
    better = stored(store, trained(num_epochs=8), graph=tmp_path / "new.onnx")
    store.add_report(Report("parity", (better.digest,), "pass", (Measurement("x", 1.0, limit=Limit("<=", 2.0), passed=True),)))
    gated(store, better, most_flips=0.2)
    return better


def gated(store: Store, bundle: Bundle, *, most_flips: float) -> Report:
    rules = {"flips": Rule("negative_flip_rate", "<=", most_flips, reason="a planted budget")}
    data, baseline = images(), store.open("production")
    return gate(bundle, store=store, baseline=baseline, data=data, limits=GateLimits(rules), latency_rounds=10)


def test_release_moves_the_alias_and_writes_card_and_page_with_pictures(
    store: Store, candidate: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "release"
    assert release(candidate, store=store, data=images(), output=output) == candidate
    assert store.aliases.current("production") == candidate.digest
    assert sorted(path.name for path in output.iterdir()) == [CARD, f"report-{candidate.short}.html"]
    page = (output / f"report-{candidate.short}.html").read_text()
    assert "may replace" in page
    assert page.count("data:image/jpeg") > 5


def test_a_failed_gate_leaves_the_alias_and_the_card_but_writes_the_page(
    store: Store, candidate: Bundle, tmp_path: Path
) -> None:
    gated(store, candidate, most_flips=0.0)
    before = store.aliases.history("production")
    with pytest.raises(CheckFailed, match="a planted budget") as caught:
        release(candidate, store=store, data=images(), output=tmp_path / "release")
    assert caught.value.exit_code == 1
    assert store.aliases.history("production") == before
    assert [path.name for path in (tmp_path / "release").iterdir()] == [f"report-{candidate.short}.html"]
    assert "must not replace" in next((tmp_path / "release").iterdir()).read_text()


def test_a_card_that_cannot_be_kept_stops_the_release_before_the_alias_moves(
    store: Store, candidate: Bundle, tmp_path: Path
) -> None:
    (tmp_path / CARD).write_text("my own words")
    with pytest.raises(InputRefused, match="marker"):
        release(candidate, store=store, output=tmp_path)
    assert store.aliases.current("production") != candidate.digest


def test_a_first_release_needs_no_predecessor(store: Store, candidate: Bundle, tmp_path: Path) -> None:
    release(candidate, store=store, alias="fresh", required=["parity"], output=tmp_path)
    assert store.aliases.current("fresh") == candidate.digest


def test_the_cards_code_answers_as_the_bundle_does(
    store: Store, candidate: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(candidate, store=store, output=tmp_path)
    code = re.search(r"```python\n(.*?)```", (tmp_path / CARD).read_text(), re.DOTALL)
    assert code is not None
    picture = np.repeat(images().samples[0].source, 2, axis=0)
    Image.fromarray(picture).save(tmp_path / "image.png")
    (tmp_path / "model.onnx").write_bytes(candidate.file("model.onnx").read_bytes())
    (tmp_path / "card_code.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    scope = runpy.run_path("card_code.py")
    images_NCHW = render(tmp_path / "image.png", PREPROCESSING).astype(np.float32).transpose(2, 0, 1)[None]
    expected = open_runner(candidate)(images_NCHW)[0]
    np.testing.assert_array_equal(scope["outputs"][0], expected)
    assert capsys.readouterr().out.strip() == images().labels[expected.argmax()]
