"""The operating point, carried over: the service acts on a threshold of the old model, and the new model needs its own.

Two models of equal ranking give different probabilities, so the old threshold on the new model moves recall, precision and the
number of alerts at once. The candidate's threshold is chosen on images it was not judged on (the validation split), so that it
keeps what the service cares about; both models are then compared on the test images as the service would use them.

Legend: N samples, K classes, B resamples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.bundle import Measurement
from toolkit.checks.intervals import bootstrap, percentile_interval, share_interval
from toolkit.checks.metrics import Predictions
from toolkit.errors import InputRefused, UsageError, unknown_name

KEEPS = ("recall", "precision", "alert_rate")


@dataclass(frozen=True)
class Service:
    """How the model in service is used, as far as the gate must know.

    `label`: the class that is acted on when its probability reaches `threshold` (0..1, the baseline's); none when the service
    takes the likeliest label. `keep`: what the candidate's own threshold must keep of the baseline's: `recall`, `precision` or
    `alert_rate`. `pinned`: a text file with one image key a line, the images whose answers must not get worse. `drop_labels`:
    labels that only the candidate knows and an adapter may leave out.
    """

    label: str | None = None
    threshold: float = 0.5
    keep: Literal["recall", "precision", "alert_rate"] = "recall"
    pinned: Path | str | None = None
    drop_labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UsageError(f"service.threshold is {self.threshold}; give a probability between 0 and 1")
        if self.keep not in KEEPS:
            raise unknown_name("service.keep", self.keep, KEEPS)

    def pinned_keys(self, known: tuple[str, ...]) -> frozenset[str]:
        """The keys in the file `pinned`. Raises `InputRefused` for a file without keys or with keys that are not in `known`."""
        if self.pinned is None:
            return frozenset()
        try:
            lines = Path(self.pinned).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputRefused(f"service.pinned: {self.pinned} cannot be read ({error}). Give a text file.") from error
        keys = frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        strange = sorted(keys - set(known))
        if strange or not keys:
            said = (
                f"names {len(strange)} images that are not in the split, such as '{strange[0]}'"
                if strange
                else "names no image"
            )
            raise InputRefused(f"service.pinned: {self.pinned} {said}. Give keys as the report's list of flips shows them.")
        return keys


@dataclass(frozen=True, eq=False)
class Alerts:
    """Which of N samples a model acts on at `threshold`, and on which it should: boolean (N,)."""

    scores_N: np.ndarray
    wanted_N: np.ndarray
    threshold: float

    @property
    def raised_N(self) -> np.ndarray:  # noqa: N802
        return self.scores_N >= self.threshold

    def recall(self, weights_BN: np.ndarray) -> np.ndarray:
        """Share of the wanted samples that are acted on (B,), 0..1; NaN where none is wanted."""
        return _share(weights_BN, self.raised_N, within_N=self.wanted_N)

    def precision(self, weights_BN: np.ndarray) -> np.ndarray:
        """Share of the acted-on samples that are wanted (B,), 0..1; NaN where none is acted on."""
        return _share(weights_BN, self.wanted_N, within_N=self.raised_N)

    def alert_rate(self, weights_BN: np.ndarray) -> np.ndarray:
        """Share of all samples that are acted on (B,), 0..1."""
        return _share(weights_BN, self.raised_N, within_N=np.ones_like(self.raised_N))

    def false_positive_rate(self, weights_BN: np.ndarray) -> np.ndarray:
        """Share of the unwanted samples that are acted on (B,), 0..1; NaN where all are wanted."""
        return _share(weights_BN, self.raised_N, within_N=~self.wanted_N)

    @property
    def right_N(self) -> np.ndarray:  # noqa: N802
        return self.raised_N == self.wanted_N


def alerts(predictions: Predictions, column: int, threshold: float) -> Alerts:
    """The alerts on class `column` at `threshold`."""
    return Alerts(predictions.probabilities_NK[:, column], predictions.targets_N == column, threshold)


def carried_threshold(baseline: Alerts, candidate: Alerts, keep: str) -> float:
    """The candidate's threshold that keeps `keep` of the baseline's alerts on the same samples.

    Where the candidate's present threshold keeps it to the sample, it stays. Otherwise `recall`: the highest threshold with at
    least the baseline's recall; `precision`: the lowest with at least its precision or, where none has it, the most precise;
    `alert_rate`: the lowest with no more alerts. A threshold lies halfway between neighbouring scores, so that it does not
    hang on one sample's rounding. Raises `InputRefused` where the baseline's figure is undefined.
    """
    scores = np.unique(candidate.scores_N)
    options = np.concatenate([[scores[0] / 2], (scores[1:] + scores[:-1]) / 2, [(scores[-1] + 1) / 2]])
    ones = np.ones((1, len(candidate.scores_N)))
    measured = np.array([getattr(Alerts(candidate.scores_N, candidate.wanted_N, t), keep)(ones)[0] for t in options])
    target = getattr(baseline, keep)(ones)[0]
    if np.isnan(target):
        raise InputRefused(
            f"service: at threshold {baseline.threshold:g} the baseline's {keep.replace('_', ' ')} is undefined on the "
            "validation split (it raises no alert there, or there is nothing to find). Give another threshold or more data."
        )
    if getattr(candidate, keep)(ones)[0] == target:
        return candidate.threshold
    good = np.flatnonzero(measured >= target - 1e-12)
    if keep == "recall":
        return float(options[good[-1]])
    if keep == "precision":
        return float(options[good[0]] if len(good) else options[np.nanargmax(measured)])
    return float(options[np.flatnonzero(measured <= target + 1e-12)[0]])


def threshold_table(models: Mapping[str, Predictions], column: int) -> list[dict[str, Any]]:
    """Recall, precision, alert rate and false-positive rate of each side at the thresholds 0.01, 0.02, ... 0.99.

    Each entry has `threshold` and, a side, the four figures (0..1, None where undefined) by name.
    """
    ones = np.ones((1, len(next(iter(models.values())))))
    table = []
    for percent in range(1, 100):
        entry: dict[str, Any] = {"threshold": percent / 100}
        for side, predictions in models.items():
            at = alerts(predictions, column, percent / 100)
            entry[side] = {name: _rounded(getattr(at, name)(ones)[0]) for name in (*KEEPS, "false_positive_rate")}
        table.append(entry)
    return table


def alert_measurements(baseline: Alerts, candidate: Alerts, *, seed: int = 0) -> list[Measurement]:
    """Recall, precision and rate of the alerts of both, with paired 95% intervals, and the flips of the action."""
    n = len(baseline.scores_N)
    sides = {"baseline": baseline, "candidate": candidate}
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        f"{keep}.{side}": functools.partial(getattr(Alerts, keep), found) for keep in KEEPS for side, found in sides.items()
    }
    points = {name: float(function(np.ones((1, n)))[0]) for name, function in functions.items()}
    spread = bootstrap(functions, num_samples=n, seed=seed)
    found = [Measurement(f"alert_threshold.{side}", sides[side].threshold) for side in sides]
    for keep in KEEPS:
        name = keep if keep.startswith("alert") else f"alert_{keep}"
        for side in sides:
            found.append(_measured(f"{name}.{side}", points[f"{keep}.{side}"], spread[f"{keep}.{side}"], n))
        change = points[f"{keep}.candidate"] - points[f"{keep}.baseline"]
        found.append(_measured(f"{name}.difference", change, spread[f"{keep}.candidate"] - spread[f"{keep}.baseline"], n))
    flipped = int((baseline.right_N & ~candidate.right_N).sum())
    return [*found, Measurement("alert_negative_flip_rate", flipped / n, interval=share_interval(flipped, n), n=n)]


def operating_point(
    service: Service,
    labels: tuple[str, ...],
    validation: dict[str, Predictions],
    test: dict[str, Predictions],
    *,
    seed: int = 0,
) -> tuple[list[Measurement], dict[str, Any]]:
    """The measurements of alerts on the test samples and what the report says of them; `validation` and `test` hold both sides.

    Raises `UsageError` for a label that is not the data's, `InputRefused` where the baseline's own figure is undefined.
    """
    assert service.label is not None
    if service.label not in labels:
        raise unknown_name("service.label", service.label, labels)
    column = labels.index(service.label)
    seen = {side: alerts(predictions, column, service.threshold) for side, predictions in validation.items()}
    threshold = carried_threshold(seen["baseline"], seen["candidate"], service.keep)
    judged = {
        "baseline": alerts(test["baseline"], column, service.threshold),
        "candidate": alerts(test["candidate"], column, threshold),
    }
    unmoved = Alerts(judged["candidate"].scores_N, judged["candidate"].wanted_N, service.threshold)
    ones = np.ones((1, len(unmoved.scores_N)))
    told = {keep: _plain(getattr(unmoved, keep)(ones)[0]) for keep in KEEPS}
    facts = {"label": service.label, "keep": service.keep, "threshold": threshold, "at_the_old_threshold": told}
    return alert_measurements(judged["baseline"], judged["candidate"], seed=seed), facts


def _measured(name: str, point: float, values_B: np.ndarray, n: int) -> Measurement:
    value = _plain(point)
    interval = None if value is None else percentile_interval(values_B)
    return Measurement(name, value, interval=interval if interval and interval[0] <= point <= interval[1] else None, n=n)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _share(weights_BN: np.ndarray, counted_N: np.ndarray, *, within_N: np.ndarray) -> np.ndarray:
    total_B = weights_BN @ within_N
    hits_B = weights_BN @ (counted_N & within_N)
    return np.divide(hits_B, total_B, out=np.full(len(weights_BN), np.nan), where=total_B > 0)
