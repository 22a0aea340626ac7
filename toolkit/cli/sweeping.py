"""What the jobs of a sweep came to, wherever they ran.

A job hands its outcome to Hydra, whose sweeper may choose the next job by it. A launcher may run jobs in other processes and on
other machines (SLURM, Ray); those leave it in their directories too, for the summary. Where a sweep lay Hydra tells a callback,
`Directories`, and no one else.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from toolkit.bundle import Bundle, Store
from toolkit.bundle.atomic import write_atomic

OUTCOME = "outcome.json"
ENDED: list[Path] = []
"""The directories of the sweeps that ended in this process. (Hydra makes the callback: there is no other way to hear of it.)"""


@dataclass(frozen=True)
class Outcome:
    """A job's exit code and, where it made a bundle, its settings, digest, store and quality (larger is better)."""

    code: int
    settings: tuple[str, ...] = ()
    digest: str | None = None
    store: str | None = None
    quality: float | None = None
    metric: str | None = None


class Directories(Callback):
    """Notes where a sweep lay when it ends."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        ENDED.append(Path(str(config.hydra.sweep.dir)))


def here() -> str:
    """This process, among those of all machines."""
    return f"{socket.gethostname()}/{os.getpid()}"


def is_sweep() -> bool:
    """Whether the present job belongs to a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def outcome_of(bundle: Bundle, store: Store) -> Outcome:
    """The outcome of the present job, which made `bundle`."""
    from toolkit.release.sweep import quality_of  # draws: heavy, and not for every command

    metric, quality = quality_of(store.reports(bundle.digest)) or (None, None)
    settings = tuple(str(text) for text in HydraConfig.get().overrides.task)
    return Outcome(0, settings, bundle.digest, str(store.root.resolve()), quality, metric)


def keep(outcome: Outcome) -> None:
    """Leave the outcome in the present job's directory."""
    write_atomic(Path(HydraConfig.get().runtime.output_dir) / OUTCOME, json.dumps(asdict(outcome), indent=1).encode())


def kept(directory: Path) -> list[Outcome]:
    """The outcomes that the jobs of a sweep left below its `directory`, in the order of the jobs."""
    paths = sorted(directory.glob(f"*/{OUTCOME}"), key=lambda path: (len(path.parent.name), path.parent.name))
    found = [json.loads(path.read_bytes()) for path in paths]
    return [Outcome(**{**facts, "settings": tuple(facts["settings"])}) for facts in found]


def summarise(outcomes: Sequence[Outcome], directory: Path) -> None:
    """The table and the plot at the end of a sweep that made several bundles."""
    made = [outcome for outcome in outcomes if outcome.digest is not None and outcome.store is not None]
    if len(made) < 2:
        return
    from toolkit.release.sweep import summarise as draw
    from toolkit.release.tables import open_console

    store = Store(Path(str(made[-1].store)))
    common = set.intersection(*(set(outcome.settings) for outcome in made))
    varied = [
        (", ".join(text for text in outcome.settings if text not in common), store.open(str(outcome.digest)))
        for outcome in made
    ]
    draw(varied, store, directory, open_console())
