"""The store shows whole, verified bundles or says which file is wrong."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.bundle import Bundle, Lineage, Manifest, Measurement, Report, Store
from toolkit.bundle.report import Limit
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError


def test_a_bundle_opens_by_digest_by_beginning_and_by_alias(store: Store, bundle: Bundle) -> None:
    store.aliases.promote("production", bundle.digest)
    for reference in (bundle.digest, bundle.short, "production"):
        assert store.open(reference) == bundle
    assert torch.equal(store.open("production").weights()["w"], torch.arange(6.0).reshape(2, 3))


def test_equal_content_is_one_bundle(store: Store, bundle: Bundle, manifest: Manifest) -> None:
    again = store.add(manifest, weights={"b": torch.zeros(3), "w": torch.arange(6.0).reshape(2, 3)})
    assert again == bundle
    assert store.digests() == [bundle.digest]


def test_every_flipped_bit_is_noticed_and_the_file_named(store: Store, bundle: Bundle) -> None:
    weights = bundle.file("weights.safetensors")
    content = bytearray(weights.read_bytes())
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1
        weights.write_bytes(flipped)
        with pytest.raises(InputRefused, match=r"weights\.safetensors is corrupt"):
            store.open(bundle.digest)


def test_a_truncated_missing_or_linked_file_is_refused(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    weights = bundle.file("weights.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(InputRefused, match="corrupt"):
        store.open(bundle.digest)
    weights.unlink()
    with pytest.raises(InputRefused, match="missing"):
        store.open(bundle.digest)
    (tmp_path / "elsewhere").write_bytes(content)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputRefused, match="not a plain file"):
        store.open(bundle.digest)


def test_an_edited_manifest_is_refused(store: Store, bundle: Bundle) -> None:
    path = bundle.path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"defective", b"destroyed"))
    with pytest.raises(InputRefused, match="was changed"):
        store.open(bundle.digest)
    assert list(store.bundles()) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "manifest.json", "a//b", "./a"])
def test_no_file_of_a_bundle_leaves_it(store: Store, manifest: Manifest, tmp_path: Path, name: str) -> None:
    (tmp_path / "source").write_text("x")
    with pytest.raises(InputRefused, match="not an allowed file name"):
        store.add(manifest, files={name: tmp_path / "source"})
    evil = replace(manifest, files={name: "0" * 64})
    target = store.root / "bundles" / evil.digest
    target.mkdir(parents=True)
    (target / "manifest.json").write_bytes(evil.canonical_json())
    with pytest.raises(InputRefused, match="not an allowed file name"):
        store.open(evil.digest)


def test_unknown_references_say_what_there_is(store: Store, bundle: Bundle) -> None:
    store.aliases.promote("production", bundle.digest)
    with pytest.raises(UsageError, match="Did you mean production"):
        store.open("producton")
    with pytest.raises(UsageError, match="is empty"):
        Store(store.root / "other").open("production")
    with pytest.raises(UsageError):
        store.open("../aliases")


KILLED_WRITER = """
import os, signal, sys, torch
from dataclasses import replace
from toolkit.bundle import Manifest, Store
import toolkit.bundle.store as module
store = Store(sys.argv[1])
manifest = next(store.bundles()).manifest
real = module.save_file
def save_then_die(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
module.save_file = save_then_die
store.add(replace(manifest, files={}, labels=("a", "b")), weights={"w": torch.ones(1000)})
"""


def test_a_killed_writer_leaves_the_store_as_it_was_and_the_next_clears_up(store: Store, bundle: Bundle) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(store.root)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert store.digests() == [bundle.digest]
    assert store.open(bundle.digest) == bundle
    assert len(os.listdir(store.root / "bundles")) == 2
    other = store.add(replace(bundle.manifest, files={}, labels=("x", "y")), weights={"w": torch.ones(2)})
    assert sorted(os.listdir(store.root / "bundles")) == sorted([bundle.digest, other.digest])


def test_a_place_that_cannot_be_written_is_an_environment_problem(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="Cannot write"):
        Store(tmp_path / "file").add(manifest, weights={"w": torch.ones(1)})


def test_find_returns_what_the_same_work_made(store: Store, bundle: Bundle, manifest: Manifest) -> None:
    same = {"stage": "adopt", "parents": (), "recipe": "seed: 0\n", "data_fingerprint": None}
    assert store.find(**same) == bundle
    assert store.find(**{**same, "recipe": "seed: 1\n"}) is None
    older = replace(manifest.lineage, recipe="seed: 2\n", packages={"model-upgrade-toolkit": "0.0.1"})
    store.add(replace(manifest, lineage=older), weights={"w": torch.ones(1)})
    assert store.find(**{**same, "recipe": "seed: 2\n"}) is None


def test_ancestors_are_listed_nearest_first(store: Store, bundle: Bundle, manifest: Manifest) -> None:
    child = store.add(replace(manifest, lineage=Lineage("finetune", parents=(bundle.digest,))), weights={"w": torch.ones(1)})
    grandchild = store.add(replace(manifest, lineage=Lineage("prune", parents=(child.digest, "f" * 64))), weights={})
    assert [b.digest for b in store.ancestors(grandchild)] == [child.digest, bundle.digest]


def test_reports_lie_beside_the_bundle_and_do_not_change_it(store: Store, bundle: Bundle) -> None:
    measured = Measurement.against("accuracy", 0.91, Limit(">=", 0.9, "what the line needs"), n=100)
    report = Report("evaluate", (bundle.digest,), "pass", (measured,), {"slices": {"mono": 3}})
    path = store.add_report(report)
    assert store.reports(bundle.digest) == {"evaluate": report}
    assert store.open(bundle.digest) == bundle
    path.write_text("{}")
    with pytest.raises(InputRefused, match="Run the check again"):
        store.reports(bundle.digest)


def test_files_beside_a_report_replace_earlier_ones_whole_and_are_no_report(store: Store, bundle: Bundle) -> None:
    report = Report("parity.failed", (bundle.digest,), "fail")
    path = store.attach(report, "repro", {"a": b"old", "b": b"old"})
    (path.parent / ".tmp-killed").mkdir()  # what a killed writer left
    assert store.attach(report, "repro", {"a": b"new"}) == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": b"new"}
    assert [entry.name for entry in path.parent.iterdir()] == ["parity.failed.repro"]
    assert store.reports(bundle.digest) == {}
    path.parent.chmod(0o500)
    try:
        if os.geteuid():
            with pytest.raises(EnvironmentProblem, match="Cannot write"):
                store.attach(report, "repro", {"a": b"third"})
            assert (path / "a").read_bytes() == b"new"
    finally:
        path.parent.chmod(0o700)


def test_a_report_never_holds_a_number_that_is_not_one(store: Store, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.add_report(Report("evaluate", (bundle.digest,), "pass", (Measurement("loss", float("nan")),)))
    assert store.reports(bundle.digest) == {}
