"""Each logger writes an epoch a row where the run lies; a missing package is named with its extra."""

import csv
import functools
import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import pytest

from toolkit.errors import EnvironmentProblem
from toolkit.training import loggers


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / loggers.CSV).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_a_row_an_epoch(toy: Any, run: Any, everything: Any, tmp_path: Path) -> None:
    schedule, options = everything
    result = run(toy.net(), schedule=schedule, options=options, loggers=[loggers.csv_file])
    found = rows(tmp_path / "run")
    assert len(found) == len(result.history)
    assert float(found[-1]["balanced_accuracy"]) == pytest.approx(result.history[-1]["balanced_accuracy"], rel=1e-5)
    assert {"phase", "epoch", "lr", "train_loss", "loss", "seconds"} <= set(found[0])


def test_a_resumed_run_replaces_the_rows_it_repeats(tmp_path: Path) -> None:
    first = loggers.csv_file(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step)}, step=step)
    second = loggers.csv_file(tmp_path)
    second.log_metrics({"loss": 20.0}, step=2)
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "20"]


def test_a_row_that_was_cut_off_is_dropped_and_new_columns_find_room(tmp_path: Path) -> None:
    first = loggers.csv_file(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step), "accuracy": 0.5}, step=step)
    first.log_metrics({"loss": 4.0, "roc_auc": 0.75}, step=4)
    assert [row["roc_auc"] for row in rows(tmp_path)] == ["", "", "", "0.75"]
    assert [row["accuracy"] for row in rows(tmp_path)] == ["0.5", "0.5", "0.5", ""]
    with (tmp_path / loggers.CSV).open("a") as stream:
        stream.write("5,0.")
    again = loggers.csv_file(tmp_path)
    again.log_metrics({"loss": 6.0}, step=5)
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "6"]


def test_tensorboard_writes_events(toy: Any, run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(toy.net(), loggers=[loggers.tensorboard])
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_names_its_extra(toy: Any, run: Any, name: str) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(EnvironmentProblem, match=rf"model-upgrade-toolkit\[{name}\]"):
        run(toy.net(), loggers=[getattr(loggers, name)])


class Recorded:
    """MLflow's logger as far as a fit uses it: runs are made by the first look at `run_id`."""

    made: ClassVar[list[str]] = []

    def __init__(self, *, run_id: str | None = None, **settings: Any) -> None:
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        if self._run_id is None:
            self._run_id = f"run{len(self.made)}"
            self.made.append(self._run_id)
        return self._run_id


def test_a_resumed_run_goes_on_in_its_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "MLFlowLogger", Recorded)
    first, again = loggers.mlflow(tmp_path / "a"), loggers.mlflow(tmp_path / "a")
    other = loggers.mlflow(tmp_path / "b")
    assert [logger.run_id for logger in (first, again, other)] == ["run0", "run0", "run1"]
    assert Recorded.made == ["run0", "run1"]


def test_a_real_mlflow_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database
    where = f"file:{tmp_path}/mlruns"
    maker = functools.partial(loggers.mlflow, tracking_uri=where)
    for step in (1, 2):
        logger = maker(tmp_path / "run")
        logger.log_metrics({"loss": 1.0 / step}, step=step)
        logger.finalize("success")
    client = MlflowClient(where)
    (found,) = client.search_runs([client.get_experiment_by_name("toolkit").experiment_id])
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [1, 2]
