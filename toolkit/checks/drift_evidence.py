"""What a drift report shows: the measurements, and what the drift looks like (slices, components, images, histograms).

Legend: M reference samples, N new ones, P components, S statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from toolkit.bundle import Limit, Measurement
from toolkit.checks.drift_embedding import ClassifierTest, classifier_test
from toolkit.checks.drift_performance import Change
from toolkit.checks.drift_statistics import CountShift, Shift, benjamini_hochberg, holm, shift
from toolkit.checks.drift_verdict import Evidence, Grade, Threshold, Thresholds
from toolkit.checks.intervals import share_interval
from toolkit.checks.observed import Observed
from toolkit.checks.profile import Profile
from toolkit.data.image_statistics import STATISTICS

NUM_TYPICAL = 12
NUM_COMPONENTS = 5
NUM_POINTS = 250
NUM_BINS = 24
SLICE_PERMUTATIONS = 199
MIN_CORRELATION = 0.4


@dataclass(frozen=True)
class Counts:
    """How often each class occurs in reference and new data, and how that shifted."""

    reference_K: list[int]
    new_K: list[int]
    shift: CountShift


@dataclass(frozen=True, eq=False)
class Found:
    """Every test and effect of one batch. `raw` are the families' p-values, `adjusted` Holm's."""

    mmd: float
    told_apart: ClassifierTest
    images: list[Shift]
    predicted: Counts
    sure: list[Shift]
    labels: Counts | None
    changes: Mapping[str, Change]
    estimate: tuple[Change, float] | None
    probes: tuple[float | None, float | None] | None
    raw: Mapping[str, float]
    adjusted: Mapping[str, float]

    def measurements(self, evidence: Evidence, thresholds: Thresholds) -> tuple[Measurement, ...]:
        """The effects with their limits; `passed` is False where an effect is beyond its limit and beyond chance."""

        def held(name: str, value: float, limit: Threshold, result: Grade, **rest: Any) -> Measurement:
            return Measurement(name, value, limit=Limit("<=", limit.value, limit.reason), passed=result < Grade.LARGE, **rest)

        most = max(self.images, key=lambda one: one.ks)
        answers = max(one.ks for one in self.sure)
        found = [
            held(
                "embedding.auc",
                self.told_apart.auc,
                thresholds.separable,
                evidence.embedding,
                interval=self.told_apart.interval,
            ),
            held(f"image.ks[statistic={most.name}]", most.ks, thresholds.image_ks, evidence.image),
            held(
                "answers.psi",
                self.predicted.shift.psi,
                thresholds.psi,
                _graded(evidence.predictions, self.predicted.shift.psi, thresholds.psi),
            ),
            held("confidence.ks", answers, thresholds.image_ks, _graded(evidence.predictions, answers, thresholds.image_ks)),
        ]
        if self.labels is not None:
            found.append(held("labels.psi", self.labels.shift.psi, thresholds.psi, evidence.labels))
        for name, change in self.changes.items():
            loss, interval = change.before - change.after, (-change.interval[1], -change.interval[0])
            result = _graded(evidence.loss, loss, thresholds.accuracy_loss)
            found.append(held(f"{name}.loss", loss, thresholds.accuracy_loss, result, interval=interval))
        if self.estimate is not None:
            change, atc = self.estimate
            loss, interval = change.before - change.after, (-change.interval[1], -change.interval[0])
            if self.changes:
                found.append(Measurement("estimated.loss", loss, interval=interval))
            else:
                found.append(held("estimated.loss", loss, thresholds.accuracy_loss, evidence.loss, interval=interval))
            found.append(Measurement("estimated.loss_atc", change.before - atc))
        return (*found, Measurement("embedding.mmd", self.mmd))

    def tests(self, alpha: float) -> list[dict[str, Any]]:
        """The families with raw and adjusted p-values."""
        return [
            {"family": name, "p": p, "adjusted": self.adjusted[name], "beyond_chance": self.adjusted[name] <= alpha}
            for name, p in self.raw.items()
        ]

    def to_details(self, new: Observed) -> dict[str, Any]:
        """What a report holds besides measurements, as plain data."""
        shifts = [*self.images, *self.sure]
        adjusted = benjamini_hochberg([one.p for one in self.images]) + benjamini_hochberg([one.p for one in self.sure])
        found: dict[str, Any] = {
            "statistics": [{**vars(one), "adjusted": q} for one, q in zip(shifts, adjusted, strict=True)],
            "counts": {"answers": vars(self.predicted) | {"shift": vars(self.predicted.shift)}},
            "performance": {name: vars(change) for name, change in self.changes.items()},
            "new_labels": list(new.new_labels),
        }
        if self.labels is not None:
            found["counts"]["labels"] = vars(self.labels) | {"shift": vars(self.labels.shift)}
        if self.estimate is not None:
            found["estimate"] = {**vars(self.estimate[0]), "atc": self.estimate[1]}
        if self.probes is not None:
            found["probe"] = {"reference": self.probes[0], "new": self.probes[1]}
        return found


def slice_results(
    profile: Profile, embeddings_NP: np.ndarray, new: Observed, *, min_samples: int, seed: int
) -> list[dict[str, Any]]:
    """Each slice of the new data against the same slice of the reference, or all of it where that is too small.

    A diagnosis under Holm's correction of its own; it raises no alarm. Smaller slices are listed and not tested.
    """
    results: list[dict[str, Any]] = []
    old_M, new_N = np.array(profile.slices)[profile.compared], np.array(new.slices)
    for name in sorted(set(new.slices) - {""}):
        rows, same = new_N == name, old_M == name
        result: dict[str, Any] = {"slice": name, "n": int(rows.sum()), "in_reference": int(same.sum())}
        known = rows & (new.predictions.targets_N >= 0)
        if known.any():
            right = new.predictions.correct_N[known]
            result |= {"accuracy": float(right.mean()), "accuracy_interval": share_interval(int(right.sum()), len(right))}
        if rows.sum() >= min_samples:
            enough = same.sum() >= min_samples
            reference_MP = profile.embeddings_MP[same] if enough else profile.embeddings_MP
            test = classifier_test(reference_MP, embeddings_NP[rows], num_permutations=SLICE_PERMUTATIONS, seed=seed)
            against = "the same slice" if enough else "all of the reference"
            result |= {"auc": test.auc, "interval": test.interval, "p": test.p, "against": against}
        results.append(result)
    adjusted = holm({result["slice"]: result["p"] for result in results if "p" in result})
    return [result | ({"adjusted": adjusted[result["slice"]]} if "p" in result else {}) for result in results]


def components(profile: Profile, embeddings_NP: np.ndarray, new: Observed) -> list[dict[str, Any]]:
    """The components that moved most, each with the image statistic it goes with (correlation of 0.4 or more), if any."""
    moved = [
        shift(f"component {i + 1}", profile.embeddings_MP[:, i], embeddings_NP[:, i]) for i in range(embeddings_NP.shape[1])
    ]
    ordered = sorted(range(len(moved)), key=lambda i: -moved[i].ks)[:NUM_COMPONENTS]
    both_TS = np.concatenate([profile.statistics_NS[profile.compared], new.statistics_NS])
    both_TP = np.concatenate([profile.embeddings_MP, embeddings_NP])
    found = []
    for i in ordered:
        correlations = [_correlation(both_TP[:, i], both_TS[:, s]) for s in range(len(STATISTICS))]
        best = int(np.argmax(np.abs(correlations)))
        goes_with = STATISTICS[best] if abs(correlations[best]) >= MIN_CORRELATION else ""
        one = moved[i]
        found.append(
            {"name": one.name, "ks": one.ks, "moved": one.moved, "goes_with": goes_with, "correlation": correlations[best]}
        )
    return found


def typical(scores_N: np.ndarray, new: Observed) -> list[dict[str, Any]]:
    """The new images least and most like the reference, by the classifier's score out of fold."""
    order = np.argsort(-scores_N, kind="stable")
    half = min(NUM_TYPICAL, len(order) // 2)
    chosen = [("unlike", i) for i in order[:half]] + [("like", i) for i in order[::-1][: half // 2]]
    classes, sure = new.predictions.classes_N, new.predictions.confidences_N
    return [
        {
            "kind": kind,
            "key": new.keys[i],
            "slice": new.slices[i],
            "score": float(scores_N[i]),
            "predicted": int(classes[i]),
            "confidence": float(sure[i]),
            "target": int(new.predictions.targets_N[i]),
        }
        for kind, i in chosen
    ]


def histograms(profile: Profile, embeddings_NP: np.ndarray, new: Observed) -> dict[str, Any]:
    """Shares in common bins of every statistic and of the confidence, and points of the two components that moved most."""
    columns = {name: (profile.statistics_NS[:, i], new.statistics_NS[:, i]) for i, name in enumerate(STATISTICS)}
    columns["confidence"] = (profile.predictions.confidences_N, new.predictions.confidences_N)
    found: dict[str, Any] = {name: _shares(*pair) for name, pair in columns.items()}
    distances_P = [stats.ks_2samp(a, b)[0] for a, b in zip(profile.embeddings_MP.T, embeddings_NP.T, strict=True)]
    axes = np.argsort(-np.array(distances_P), kind="stable")[:2]
    points = [profile.embeddings_MP[:NUM_POINTS, axes], embeddings_NP[:NUM_POINTS, axes]]
    found["points"] = {
        "axes": [int(i) + 1 for i in axes],
        "reference": np.round(points[0], 3).tolist(),
        "new": np.round(points[1], 3).tolist(),
    }
    return found


def _graded(result: Grade, effect: float, limit: Threshold) -> Grade:
    """The share of one effect in the grade of its family."""
    return result if result < Grade.LARGE or effect > limit.value else Grade.SMALL


def _shares(reference_M: np.ndarray, new_N: np.ndarray) -> dict[str, Sequence[float]]:
    reference_M, new_N = reference_M[np.isfinite(reference_M)], new_N[np.isfinite(new_N)]
    edges = np.histogram_bin_edges(np.concatenate([reference_M, new_N]), NUM_BINS)
    counts = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (reference_M, new_N)]
    return {"edges": edges.tolist(), "reference": counts[0].tolist(), "new": counts[1].tolist()}


def _correlation(a_T: np.ndarray, b_T: np.ndarray) -> float:
    finite = np.isfinite(b_T)
    a_T, b_T = a_T[finite], b_T[finite]
    if len(a_T) < 3 or a_T.std() < 1e-12 or b_T.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(a_T, b_T)[0, 1])
