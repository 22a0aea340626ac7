"""What production is wagered against: the reference profile as counts in bins, half of it to draw the bins, half to fill them.

Bins drawn and filled with the same images would make the fill too even. Distances are those of whitened embeddings from
the reference's mean, a number that grows when images look like nothing seen before.

Legend: N images, P components, B bins.
"""

from dataclasses import dataclass

import numpy as np

from toolkit.checks.profile import Profile
from toolkit.checks.sequential import Region, highest_rate, region

IMAGES_A_BIN = 25
MAX_BINS = 10
TESTS = ("answers", "confidence", "distance", "labels", "errors", "discordant")
MEANINGS = {
    "answers": "how often each label is answered",
    "confidence": "how sure the model is",
    "distance": "how far images are from the reference",
    "labels": "how often each true label occurs",
    "errors": "share of wrong answers",
    "discordant": "wrong where the former model is right, of all they disagree on",
}


@dataclass(frozen=True, eq=False)
class Binned:
    """Inner edges of bins, and how many reference values fall into each."""

    edges: np.ndarray
    counts: tuple[int, ...]

    def counts_of(self, values_N: np.ndarray) -> list[int]:
        """How many of the values fall into each bin."""
        return np.bincount(np.searchsorted(self.edges, values_N, side="right"), minlength=len(self.counts)).tolist()


@dataclass(frozen=True, eq=False)
class Reference:
    """Nulls of all tests at a false-alarm rate of `alpha` over their whole life; None where the profile cannot give one."""

    alpha: float
    confidence: Binned
    distance: Binned
    shares: dict[str, tuple[int, ...]]
    regions: dict[str, Region]
    highest_error: float | None

    @property
    def alarm_at(self) -> float:
        """The natural logarithm of the e-value that alarms: tests share the rate, region and wager share a test's."""
        return float(-np.log(0.75 * self.alpha / len(TESTS)))


def reference(profile: Profile, *, alpha: float) -> Reference:
    """The nulls that the profile of a bundle gives."""
    error = 0.25 * alpha / len(TESTS)
    num_classes = profile.predictions.num_classes
    confidence = _binned(profile.predictions.confidences_N)
    distance = _binned(distances(profile.embeddings_MP))
    targets = profile.predictions.targets_N[profile.predictions.targets_N >= 0]
    shares = {
        "answers": tuple(np.bincount(profile.predictions.classes_N, minlength=num_classes).tolist()),
        "confidence": confidence.counts,
        "distance": distance.counts,
    }
    highest = None
    if len(targets):
        shares["labels"] = tuple(np.bincount(targets, minlength=num_classes).tolist())
        labelled = profile.predictions.take(profile.predictions.targets_N >= 0)
        highest = highest_rate(int((~labelled.correct_N).sum()), len(labelled), error=error)
    regions = {name: region(counts, error=error) for name, counts in shares.items()}
    return Reference(alpha, confidence, distance, shares, regions, highest)


def distances(embeddings_NP: np.ndarray) -> np.ndarray:
    """The root of the mean square of each whitened embedding (N,): a little above 1 for images of the reference."""
    return np.sqrt((embeddings_NP**2).mean(axis=1))


def _binned(values_N: np.ndarray) -> Binned:
    drawn, filled = np.split(values_N, [len(values_N) // 2])
    num_bins = int(np.clip(len(filled) // IMAGES_A_BIN, 2, MAX_BINS))
    edges = np.unique(np.quantile(drawn, np.linspace(0, 1, num_bins + 1)[1:-1]))
    places = np.searchsorted(edges, filled, side="right")
    return Binned(edges, tuple(np.bincount(places, minlength=len(edges) + 1).tolist()))
