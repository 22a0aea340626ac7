"""Each logger writes an epoch a row where the run lies; a missing package is named with its extra."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

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
