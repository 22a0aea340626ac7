"""Where a fit stands: position, best weights so far, history. Plain data, so that a checkpoint can hold it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from toolkit.bundle import Plan
from toolkit.bundle.manifest import from_plain
from toolkit.pruning import compose_plans
from toolkit.training.metrics import METRICS


@dataclass
class Course:
    """The state of a fit between two steps, except for the tensors that learn.

    `phase`, `epoch` (in the phase) and `batch` (in the epoch) say what comes next; `num_steps` counts optimiser steps.
    `tally` holds the epoch's sums so far: loss, weight, right answers. `best` are the best weights so far, by name. `plan` is
    what the fit has cut out of the net so far, in `num_prunings` steps, as plain data.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    num_steps: int = 0
    num_stale_epochs: int = 0
    finished: bool = False
    seconds: float = 0.0
    best_value: float | None = None
    best_loss: float = float("inf")
    tally: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    num_prunings: int = 0
    plan: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The fields, as they are."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Course":
        """The course that `state_dict` described."""
        return cls(**state)

    def is_best(self, found: Mapping[str, float], monitor: str) -> bool:
        """Take note of an epoch's scores; whether they are the best so far (a tie goes to the lower loss)."""
        sign = METRICS[monitor]
        value, loss = found[monitor], found["loss"]
        better = self.best_value is None or (sign * value, -loss) > (sign * self.best_value, -self.best_loss)
        if better:
            self.best_value, self.best_loss, self.num_stale_epochs = value, loss, 0
        else:
            self.num_stale_epochs += 1
        return better

    def pruned(self, plan: Plan) -> None:
        """Take note that `plan` was carried out; what was best before was another net."""
        self.num_prunings += 1
        if plan:
            self.plan = json.loads(json.dumps(dataclasses.asdict(compose_plans(self.removed, plan))))
            self.best_value, self.best_loss, self.best = None, float("inf"), {}

    @property
    def removed(self) -> Plan:
        """The plan of all the cuts so far."""
        return from_plain(Plan, self.plan)

    def record(self, found: Mapping[str, float], *, lr: float, count: int) -> dict[str, float]:
        """The line of the history for the epoch that ends, whose sums are in `tally`; `count` samples were learned from."""
        total, weight, right = self.tally
        return {
            "phase": self.phase + 1,
            "epoch": self.epoch + 1,
            "step": self.num_steps,
            "lr": lr,
            "train_loss": total / weight,
            "train_accuracy": right / count,
            **found,
            "seconds": round(self.seconds, 3),
        }

    def next_epoch(self, *, num_epochs: int, patience: int | None) -> bool:
        """Move to the next epoch of the phase; False when the phase has none left or its patience is spent."""
        self.epoch, self.batch, self.tally = self.epoch + 1, 0, [0.0, 0.0, 0.0]
        return self.epoch < num_epochs and (patience is None or self.num_stale_epochs < patience)

    def next_phase(self, num_phases: int) -> None:
        """Move to the start of the next phase, or to the end."""
        self.phase, self.epoch, self.batch, self.num_stale_epochs = self.phase + 1, 0, 0, 0
        self.finished = self.phase >= num_phases
