"""What the tests of the monitor share: its limits, what a service says, and a look at it."""

import json
from pathlib import Path

import numpy as np

from tests.checks.planted import images
from toolkit.bundle import Bundle, Store
from toolkit.checks.drift_verdict import Threshold, Thresholds
from toolkit.stages.monitor import monitor


def thresholds(**changes: float) -> Thresholds:
    values = {"alpha": 0.05, "min_samples": 100, "separable": 0.6, "another_world": 0.95, "image_ks": 0.2, "psi": 0.1}
    values |= {"accuracy_loss": 0.03, "releases_behind": 8, **changes}
    return Thresholds(**{name: Threshold(value, "for the test") for name, value in values.items()})


def lines(num: int, *, seed: int, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3), right: float | None = None) -> bytes:
    generator = np.random.default_rng(seed)
    labels, told = images().labels, []
    for i in range(num):
        label = int(generator.choice(3, p=shares))
        record = {"id": f"{seed}-{i}", "label": labels[label]}
        if right is not None:
            record["truth"] = labels[label if generator.uniform() < right else (label + 1) % 3]
        told.append(json.dumps(record))
    return ("\n".join(told) + "\n").encode()


def look(bundle: Bundle, store: Store, source: Path, **settings):
    return monitor(bundle, store=store, source=str(source), thresholds=thresholds(), output=source.parent / "out", **settings)
