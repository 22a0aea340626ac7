"""Test images that a candidate was trained on are counted by their pixels, whatever the file, and fail the gate."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from tests.checks.planted import stored, trained
from toolkit.bundle import Bundle, Report, Store, lineage
from toolkit.checks.regression_limits import GateLimits, Rule
from toolkit.checks.training_overlap import SEEN, seen_images, training_overlap
from toolkit.data import ImageSet, Sample
from toolkit.data.shapes import shapes
from toolkit.stages.gate import gate

DATA = shapes(240, size_px=32, noise=40.0)
LIMITS = GateLimits({"size": Rule("size.ratio", "<=", 2.0, reason="planted")})


def tuned(store: Store, tmp_path: Path, seen: ImageSet | None, *, fingerprint: str = "00" * 32) -> Bundle:
    """A bundle that was fine-tuned on `seen` (None: by a toolkit that kept no record)."""
    parent = stored(store, trained(num_epochs=1), graph=tmp_path / "net.onnx")
    made = lineage("finetune", parents=(parent.digest,), data_fingerprint=fingerprint)
    child = store.add(
        replace(parent.manifest, lineage=made, files={}), weights=parent.weights(), files={"model.onnx": tmp_path / "net.onnx"}
    )
    if seen is not None:
        store.add_report(Report("data", (child.digest,), "pass"), tensors=seen_images(seen))
    return child


def judged(store: Store, bundle: Bundle, baseline: Bundle, limits: GateLimits = LIMITS) -> tuple[str, str]:
    report = gate(bundle, store=store, baseline=baseline, data=DATA, limits=limits, latency_rounds=10)
    return report.verdict, report.details["limits"].get(SEEN, {}).get("advice", "")


def test_a_copy_saved_in_another_file_is_the_same_image(store: Store, tmp_path: Path) -> None:
    tested = DATA.split("test").samples[3]
    Image.fromarray(tested.source).save(tmp_path / "again.png")
    copy = Sample("again.png", tested.target, "train", tmp_path / "again.png")
    leaky = replace(DATA.split("train"), samples=(*DATA.split("train").samples, copy))
    baseline = stored(store, trained(num_epochs=1))
    child = tuned(store, tmp_path, leaky)
    assert training_overlap(store, child, DATA, split="test").count == 1
    verdict, said = judged(store, child, baseline)
    assert verdict == "fail"
    assert tested.key in said
    allowed = GateLimits({**LIMITS.rules, "seen": Rule(SEEN, "<=", 1, reason="Known and small.")})
    assert judged(store, child, baseline, allowed)[0] == "pass"
    clean = tuned(store, tmp_path, DATA, fingerprint="11" * 32)
    assert training_overlap(store, clean, DATA, split="test").count == 0
    assert judged(store, clean, baseline)[0] == "pass"


def test_a_training_without_a_record_is_undecided_unless_its_data_is_here(store: Store, tmp_path: Path) -> None:
    baseline = stored(store, trained(num_epochs=1))
    child = tuned(store, tmp_path, None)
    verdict, said = judged(store, child, baseline)
    assert verdict == "undecided"
    assert child.short in said
    known = tuned(store, tmp_path, None, fingerprint=DATA.fingerprint())
    assert training_overlap(store, known, DATA, split="test").count == 0


def test_an_adopted_model_is_not_judged_by_what_nobody_knows(store: Store) -> None:
    found = training_overlap(store, stored(store, trained(num_epochs=1)), DATA, split="test")
    assert found.count is None
    assert found.held(LIMITS) == LIMITS
    assert found.num_images == len(DATA.split("test"))
