"""Where the metrics of each epoch go: one function a logger, called with the run's directory when the fit starts.

A run directory names a run: the loggers' run ids are derived from it, so a resumed run goes on in the same place and two
runs of a sweep never share one.
"""

import csv
import hashlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from toolkit.bundle.atomic import environment_errors, write_atomic
from toolkit.errors import missing_extra
from toolkit.training import processes

CSV = "metrics.csv"
MLFLOW_RUN = "mlflow_run_id"


class CsvLogger(Logger):
    """Writes `metrics.csv`, a row an epoch; a resumed run replaces the rows after the epoch it went back to.

    A row is appended with one write and not flushed to the disk, which would cost more than a small epoch: it survives the
    process, and what a power cut takes is in the checkpoint's history. A row that was cut off is dropped when it is read.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / CSV
        self._rows: list[dict[str, str]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            self._rows = [row for row in rows if None not in row and None not in row.values()]
        self._columns: list[str] = []  # of the file as this process wrote it

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters stand in the bundle's recipe, not here."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the row of epoch `step` (counted over all phases, from 1)."""
        assert step is not None
        row = {key: f"{value:.6g}" for key, value in metrics.items()}
        follows = step == len(self._rows) + 1 and set(row) <= set(self._columns)
        self._rows = [*self._rows[: step - 1], row]
        if follows:
            with environment_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
                stream.write(",".join(row.get(column, "") for column in self._columns) + "\n")
            return
        self._columns = list(dict.fromkeys(key for known in self._rows for key in known))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue().encode())


def csv_file(run_dir: Path) -> Logger:
    """`metrics.csv` in the run directory."""
    return CsvLogger(run_dir)


def tensorboard(run_dir: Path) -> Logger:
    """TensorBoard events in `tensorboard/` of the run directory; needs the extra `tensorboard`."""
    try:
        return TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise missing_extra("tensorboard", "tensorboard", "logger=tensorboard") from error


def mlflow(run_dir: Path, *, experiment: str = "toolkit", tracking_uri: str | None = None) -> Logger:
    """An MLflow run at `tracking_uri` (default: MLflow's own, MLFLOW_TRACKING_URI); needs the extra `mlflow`.

    MLflow gives the run its id, so the run directory keeps it: a resumed run goes on in the same MLflow run.
    """
    known = run_dir / MLFLOW_RUN
    run_id = known.read_text(encoding="utf-8").strip() if known.is_file() else None
    try:
        made = MLFlowLogger(experiment_name=experiment, run_name=run_dir.name, tracking_uri=tracking_uri, run_id=run_id)
    except ModuleNotFoundError as error:
        raise missing_extra("mlflow", "mlflow", "logger=mlflow") from error
    if run_id is None and processes.is_first():
        write_atomic(known, str(made.run_id).encode())
    return made


def wandb(run_dir: Path, *, project: str = "toolkit", offline: bool = False) -> Logger:
    """A Weights & Biases run whose id follows from the run directory; needs the extra `wandb`."""
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    try:
        return WandbLogger(
            name=run_dir.name, save_dir=run_dir, project=project, offline=offline, id=identity, resume="allow", reinit=True
        )
    except ModuleNotFoundError as error:
        raise missing_extra("wandb", "wandb", "logger=wandb") from error
