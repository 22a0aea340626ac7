"""The stage `finetune`, alone and from the command line."""

import io
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.children import Child
from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.cli import main
from toolkit.data import ImageSet
from toolkit.data.shapes import shapes
from toolkit.errors import InputRefused
from toolkit.models import build, pixel_contract, register, restore
from toolkit.release.card import render_card
from toolkit.release.tables import show_bundle
from toolkit.stages.finetune import finetune
from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, linear_probe
from toolkit.training.loggers import csv_file

PREPROCESSING = Preprocessing(size_px=(32, 32))
OPTIONS = FitOptions(batch_size=16)
SCHEDULE = Schedule("short", (Phase(0, 3, 1e-2, augment=False), Phase(1, 1, 1e-3)))
CPU = TrainerSpec(accelerator="cpu")


def tiny(num_classes: int = 5) -> nn.Module:
    """Two strided convolutions with BatchNorm and a linear head."""
    first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register("finetune-test/tiny", tiny, PREPROCESSING)


@pytest.fixture
def parent(store: Store) -> Bundle:
    architecture = Architecture("finetune-test/tiny", {"num_classes": 5})
    torch.manual_seed(0)
    manifest = Manifest(
        architecture=architecture,
        labels=("circle", "hexagon", "triangle", "star", "heart"),
        preprocessing=PREPROCESSING,
        contract=pixel_contract(PREPROCESSING, 5),
        lineage=lineage("adopt"),
    )
    return store.add(manifest, weights=build(architecture).state_dict())


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return shapes(num_samples=60, size_px=32, num_labels=3)


def tuned(parent: Bundle, store: Store, data: ImageSet, run_dir: Path, **changes: Any) -> Bundle:
    settings = {"schedule": SCHEDULE, "options": OPTIONS, "trainer": CPU, "run_dir": run_dir}
    return finetune(parent, store=store, data=data, **(settings | changes))


def test_the_child_has_the_datas_labels_its_parent_and_both_reports(
    parent: Bundle, store: Store, data: ImageSet, tmp_path: Path
) -> None:
    child = tuned(parent, store, data, tmp_path / "run", trainer=replace(CPU, loggers={"csv": csv_file}))
    manifest = child.manifest
    assert manifest.labels == data.labels
    assert manifest.architecture.kwargs["num_classes"] == 3
    assert manifest.contract == pixel_contract(PREPROCESSING, 3)
    assert manifest.lineage.parents == (parent.digest,)
    assert manifest.lineage.data_fingerprint == data.fingerprint()
    assert "Phase" in manifest.lineage.recipe
    assert restore(store.open(child.digest))(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    reports = store.reports(child.digest)
    assert reports["training"].details["labels"]["carried"] == ["circle", "triangle"]
    assert len(reports["training"].details["history"]) == 4
    assert reports["training"].value("val_balanced_accuracy") > 0
    assert reports["data"].details["num_images"] == len(data)
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_a_reader_is_told_which_classes_were_carried_over(
    parent: Bundle, store: Store, data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the data's labels the parent knows the triangle; one of its own is written otherwise."""
    labels = ("Circle ", *data.labels[1:])
    with caplog.at_level("INFO"):
        child = tuned(parent, store, replace(data, labels=labels), tmp_path / "run")
    changes = store.reports(child.digest)["training"].details["labels"]
    assert {kind: list(names) for kind, names in changes.items() if kind != "similar"} == {
        "carried": ["triangle"],
        "new": ["Circle ", "square"],
        "dropped": ["circle", "hexagon", "star", "heart"],
    }
    assert [list(pair) for pair in changes["similar"]] == [["circle", "Circle "]]
    assert "1 carried over (triangle); 2 new" in caplog.text
    assert "'circle' and 'Circle '" in caplog.text
    console = Console(width=120, record=True, file=io.StringIO())
    show_bundle(child, store, console)
    shown, card = console.export_text(), render_card(store, child, name="shapes")
    for text in (shown, card):
        assert "classes carried over" in text
        assert "4: circle, hexagon, star, heart" in text


def test_the_same_training_is_done_once(parent: Bundle, store: Store, data: ImageSet, tmp_path: Path) -> None:
    first = tuned(parent, store, data, tmp_path / "first")
    again = tuned(parent, store, data, tmp_path / "second")
    assert again.digest == first.digest
    assert not (tmp_path / "second").exists()
    other = tuned(parent, store, data, tmp_path / "third", options=replace(OPTIONS, seed=1))
    assert other.digest != first.digest


def in_child(work: str) -> Child:
    """Run `work` in a process of its own that knows the tiny net."""
    program = f"""
from tests.stages import test_finetune as here
from toolkit.cli import main
here.register("finetune-test/tiny", here.tiny, here.PREPROCESSING)
{work}
"""
    return Child(program)


def part(store: str, parent: str, run_dir: str) -> None:
    """What the killed process of the next test does: it saves every step."""
    images = shapes(num_samples=60, size_px=32, num_labels=3)
    opened = Store(Path(store))
    tuned(opened.open(parent), opened, images, Path(run_dir), trainer=replace(CPU, checkpoint_every_s=0))


def test_a_resumed_run_gives_the_same_bundle(parent: Bundle, store: Store, data: ImageSet, tmp_path: Path) -> None:
    whole = tuned(parent, Store(tmp_path / "other"), data, tmp_path / "whole")

    child = in_child(f"here.part({str(store.root)!r}, {parent.digest!r}, {str(tmp_path / 'part')!r})")
    while not any(path.name >= "00000006" for path in (tmp_path / "part" / "checkpoints").glob("0*.ckpt")):
        assert child.poll() is None
        time.sleep(0.002)
    child.kill()
    assert store.digests() == [parent.digest]
    resumed = tuned(parent, store, data, tmp_path / "new", resume=tmp_path / "part")
    assert resumed.digest == whole.digest


def test_unsound_data_is_refused_before_training(parent: Bundle, store: Store, data: ImageSet, tmp_path: Path) -> None:
    only = ImageSet(data.name, data.labels, tuple(s for s in data.samples if s.target != 1 or s.split != "train"))
    with pytest.raises(InputRefused, match=data.labels[1]):
        tuned(parent, store, only, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_over_schedules_from_the_command_line(
    parent: Bundle, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=shapes", "data.num_samples=60"]
    settings = ["schedule.epochs=1", "options.batch_size=16", "trainer=cpu", "hydra.sweep.dir=sweep"]
    with pytest.raises(SystemExit) as stopped:
        main(
            ["finetune", "-m", f"bundle={parent.digest}", f"store={store.root}", *data, *settings, "schedule=linear_probe,full"]
        )
    assert stopped.value.code == 0
    for job, name in (("0", "linear_probe"), ("1", "full")):
        assert (tmp_path / "sweep" / job / "metrics.csv").is_file()
        assert name in json.loads((tmp_path / "sweep" / job / "run.json").read_text())["schedule"]
    assert len(store.digests()) == 3
    scores = {
        digest: store.reports(digest)["training"].value("val_balanced_accuracy")
        for digest in store.digests()
        if digest != parent.digest
    }
    best = max(scores.values())
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "schedule=linear_probe |" in table
    assert "schedule=full |" in table
    assert f"balanced accuracy {best:.4f}" in table
    named = next(digest[:12] for digest in scores if f"Best: bundle {digest[:12]}" in table)
    assert f"Best: bundle {named}" in capsys.readouterr().out
    assert scores[next(digest for digest in scores if digest.startswith(named))] == best
    assert (tmp_path / "sweep" / "pareto.svg").read_text().startswith("<?xml")


def test_a_terminated_command_exits_143_and_resumes(
    parent: Bundle, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [f"bundle={parent.digest}", f"store={store.root}", "data=shapes", "data.num_samples=60"]
    command = ["finetune", *places, "schedule=linear_probe", "schedule.epochs=200", "trainer=cpu"]
    child = in_child(f"main({[*command, 'trainer.checkpoint_every_s=0', 'hydra.run.dir=first']})")
    while not list((tmp_path / "first" / "checkpoints").glob("0*.ckpt")):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 143
    assert store.digests() == [parent.digest]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "resume=first", "hydra.run.dir=second"])
    assert stopped.value.code == 0
    assert len(store.digests()) == 2


def test_linear_probe_is_a_schedule_of_the_head_alone() -> None:
    assert [phase.depth for phase in linear_probe().phases] == [0]
