"""Truths that reach the monitor later or earlier than their answers join them once, by id or by file name."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.checks.planted import images, stored, trained
from tests.stages.monitoring import look
from toolkit.bundle import Bundle, Store
from toolkit.checks import monitor_truths
from toolkit.checks.profile import make_profile


@pytest.fixture
def bundle(store: Store) -> Bundle:
    found = stored(store, trained(num_epochs=8))
    make_profile(found, images(), store=store, max_samples=400)
    return found


def told(first: int, num: int, *, truth: bool) -> bytes:
    """Answers `0` to the ids from `first` on (numbers), or their truths, every other one `1` (ids as text)."""
    labels = images().labels
    records = (
        {"id": str(i), "truth": labels[i % 2]} if truth else {"id": i, "label": labels[0]} for i in range(first, first + num)
    )
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_a_truth_that_comes_later_or_earlier_joins_its_answer_once(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "answers.jsonl").write_bytes(told(0, 40, truth=False))
    report = look(bundle, store, source)
    assert (report.value("samples.seen"), report.value("samples.with_truth")) == (40, 0)
    (source / "truths.jsonl").write_bytes(told(20, 40, truth=True))
    report = look(bundle, store, source)
    assert report.details["counts"]["errors"] == [10, 20]
    assert report.details["counts"]["labels"] == [10, 10, 0]
    assert report.details["num_waiting"] == {"answers": 20, "truths": 20}
    with (source / "answers.jsonl").open("ab") as file:
        file.write(told(40, 20, truth=False))
    (source / "truths.jsonl").write_bytes(told(20, 40, truth=True) + told(20, 40, truth=True))
    report = look(bundle, store, source)
    assert report.details["counts"]["errors"] == [20, 40]
    assert (report.value("samples.seen"), report.value("samples.refused")) == (60, 0)
    assert sum(report.details["counts"]["answers"]) == 60
    assert "40 with a known truth" in (tmp_path / "out" / "monitor.html").read_text()


def test_late_truths_alone_raise_the_alarm(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    labels = images().labels
    (source / "a.jsonl").write_bytes(
        b"".join(json.dumps({"id": i, "label": labels[i % 3]}).encode() + b"\n" for i in range(300))
    )
    assert look(bundle, store, source).verdict == "pass"
    wrong = (json.dumps({"id": i, "truth": labels[(i + i % 2) % 3]}).encode() + b"\n" for i in range(300))
    (source / "b.jsonl").write_bytes(b"".join(wrong))
    report = look(bundle, store, source)
    assert report.verdict == "fail"
    assert set(report.details["alarms"]) == {"errors"}


def test_images_are_joined_by_file_name_and_queues_forget_the_oldest(
    store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_truths, "MAX_WAITING", 3)
    source = tmp_path / "in"
    (source / "camera").mkdir(parents=True)
    samples = images().split("val").samples[:5]
    for i, sample in enumerate(samples):
        Image.fromarray(sample.source).save(source / "camera" / f"{i}.png")
    look(bundle, store, source)
    truths = (json.dumps({"id": f"{i}.png", "truth": images().labels[s.target]}) for i, s in enumerate(samples))
    (source / "truths.jsonl").write_text("\n".join(truths) + "\n" + '{"truth": "circle"}\n')
    report = look(bundle, store, source)
    assert report.value("samples.with_truth") == 3
    assert report.details["num_waiting"] == {"answers": 0, "truths": 2}
    assert report.value("samples.refused") == 1


def test_truths_without_any_answer_are_no_samples(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "truths.jsonl").write_bytes(told(0, 5, truth=True))
    report = look(bundle, store, source)
    assert report.verdict == "undecided"
    assert (report.value("samples.seen"), report.value("samples.with_truth")) == (0, 0)
