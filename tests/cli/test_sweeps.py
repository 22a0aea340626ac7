"""Sweeps: jobs run where the launcher says, the search learns from them, and a table at the end names the best bundle."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.cli import main
from toolkit.data.shapes import shapes
from toolkit.models import build, pixel_contract

DATA = ["data=shapes", "data.num_samples=80", "data.size_px=32", "data.num_labels=2"]
SHORT = ["schedule=linear_probe", "schedule.epochs=1", "options.batch_size=16", "trainer=cpu", "trainer.channels_last=false"]


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


SUBMITIT = installed("hydra_plugins.hydra_submitit_launcher")
RAY = installed("hydra_plugins.hydra_ray_launcher")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store) -> Bundle:
    """A small net of a registered architecture, so that a job in another process can build it."""
    blocks = [[1, 16, 1, 1], [6, 32, 2, 2], [6, 64, 1, 2]]
    architecture = Architecture("torchvision/mobilenet_v2", {"num_classes": 2, "inverted_residual_setting": blocks})
    preprocessing = Preprocessing(size_px=(32, 32))
    torch.manual_seed(0)
    labels = tuple(shapes(num_samples=80, size_px=32, num_labels=2).labels)
    manifest = Manifest(architecture, labels, preprocessing, pixel_contract(preprocessing, 2), lineage("adopt"))
    return store.add(manifest, weights=build(architecture).state_dict())


def swept(stage: str, parent: Bundle, *arguments: str) -> tuple[int, Path]:
    """The exit code of a sweep, and the directory it chose."""
    before = set(Path("runs").glob("*/sweep_*"))
    with pytest.raises(SystemExit) as stopped:
        main([stage, "-m", f"bundle={parent.digest}", *DATA, *arguments])
    (directory,) = set(Path("runs").glob("*/sweep_*")) - before
    return int(stopped.value.code or 0), directory


def set_by_jobs(directory: Path, key: str) -> list[str]:
    paths = sorted(directory.glob("*/.hydra/overrides.yaml"), key=lambda path: int(path.parts[-3]))
    return [text.partition("=")[2] for path in paths for text in yaml.safe_load(path.read_text()) if text.startswith(f"{key}=")]


def test_a_prune_sweep_ends_with_the_table_the_plot_and_the_best_bundle(parent: Bundle, store: Store) -> None:
    recovery = [f"recovery.{text}" for text in ("schedule.epochs=1", "options.batch_size=16", "trainer.channels_last=false")]
    small = ["options.num_batches=2", "options.batch_size=8", "options.bn_images=32", "options.round_to=8"]
    code, directory = swept("prune", parent, "criterion=magnitude", "target.macs=0.5,0.7", *small, *recovery)
    assert code == 0
    table = (directory / "sweep.md").read_text()
    assert re.search(r"\| target.macs=0.5 \|.*\n|\| target.macs=0.7 \|", table)
    named = re.search(r"Best: bundle (\w+) \(target.macs=0.[57]\)", table)
    assert named
    reports = {digest[:12]: store.reports(digest)["pruning"] for digest in store.digests() if digest != parent.digest}
    assert len(reports) == 2
    scores = {name: report.value("balanced_accuracy.candidate[split=val]") for name, report in reports.items()}
    assert scores[named[1]] == max(scores.values())
    assert (directory / "pareto.svg").is_file()


def test_optuna_searches_the_open_settings_and_the_same_seed_draws_the_same(parent: Bundle, store: Store) -> None:
    pytest.importorskip("optuna")
    open_ = ["schedule.lr=tag(log,interval(1e-4,1e-1))", "options.label_smoothing=0.0,0.1"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_startup_trials=2", "hydra.sweeper.n_jobs=2"]
    code, directory = swept("finetune", parent, *search, *SHORT, *open_)
    assert code == 0
    rates = [float(text) for text in set_by_jobs(directory, "schedule.lr")]
    assert len(set(rates)) == 4
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert set(set_by_jobs(directory, "options.label_smoothing")) <= {"0.0", "0.1"}
    assert "Best: bundle" in (directory / "sweep.md").read_text()
    made = store.digests()
    code, again = swept("finetune", parent, *search, *SHORT, *open_)
    assert [float(text) for text in set_by_jobs(again, "schedule.lr")] == rates
    assert store.digests() == made


def test_optuna_is_told_what_to_search(parent: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "-m", f"bundle={parent.digest}", *DATA, "hydra/sweeper=optuna"])
    assert stopped.value.code == 2
    assert "leave a setting open" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("plugin", "cluster"),
    [
        ("submitit", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]),
        ("ray", ["launcher=ray"]),  # on an instance of its own
    ],
)
def test_jobs_in_other_processes_come_back_for_the_table(parent: Bundle, store: Store, plugin: str, cluster: list[str]) -> None:
    if not {"submitit": SUBMITIT, "ray": RAY}[plugin]:
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    code, directory = swept("finetune", parent, *cluster, *SHORT, "schedule.lr=0.001,0.01")
    assert code == 0
    outcomes = [json.loads((directory / job / "outcome.json").read_text()) for job in ("0", "1")]
    assert {outcome["digest"] for outcome in outcomes} | {parent.digest} == set(store.digests())
    best = max(outcomes, key=lambda outcome: outcome["quality"])
    assert f"balanced accuracy {best['quality']:.4f}" in (directory / "sweep.md").read_text()


@pytest.mark.skipif(not SUBMITIT, reason="hydra-submitit-launcher is not installed")
def test_a_job_that_fails_elsewhere_gives_the_sweep_its_exit_code(parent: Bundle) -> None:
    code, directory = swept("finetune", parent, "hydra/launcher=submitit_local", *SHORT, "resume=nowhere")
    assert code == 3
    assert not (directory / "sweep.md").exists()


@pytest.mark.parametrize(
    ("arguments", "extra", "present"),
    [
        (["launcher=slurm"], "slurm", SUBMITIT),
        (["launcher=ray"], "ray", RAY),
        (["hydra/sweeper=optuna", "schedule.lr=interval(0.1,0.2)"], "optuna", installed("optuna")),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_missing_extra_is_named(arguments: list[str], extra: str, present: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if present:
        pytest.skip("it is installed")
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "-m", "bundle=any", "data=shapes", *arguments])
    assert stopped.value.code == 4
    said = capsys.readouterr().err
    assert f"pip install 'model-upgrade-toolkit[{extra}]'" in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [("local", "BasicLauncher"), ("slurm", "submitit_launcher.SlurmLauncher"), ("ray", "ray_launcher.RayLauncher")],
)
def test_launchers_compose_without_a_cluster(launcher: str, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", f"launcher={launcher}", "--cfg", "hydra", "-p", "hydra.launcher"])
    assert not stopped.value.code
    assert plugin in capsys.readouterr().out
