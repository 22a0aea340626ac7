"""The reference profile of a bundle: what its data looked like when it was good. Drift is measured against it.

It is the report `profile` with its tensors beside it, outside the bundle's digest, and holds no image: seven statistics an
image, its features reduced to 32 numbers, the answer's log-probabilities, whether it was right, and a digest that lets a
later batch leave out the very same pictures. The reduction (principal components, whitened) is fitted on a part of the
images that is compared with nothing afterwards: components look larger on the images they were fitted on than on any other
sample of the same source, and a two-sample test would take that for drift. Numbers are kept in float64 for the same reason:
a size rounded to float32 differs from every size that is not, which is a Kolmogorov-Smirnov distance of 1.

Legend: N images, M of them compared by their features, K labels, D features, P components, S statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolkit.bundle import Bundle, Measurement, Report, Store, environment
from toolkit.checks.evaluate import describe_data
from toolkit.checks.intervals import share_interval
from toolkit.checks.metrics import Predictions
from toolkit.checks.observed import Observed, entropies, observe
from toolkit.data import ImageSet
from toolkit.data.image_statistics import STATISTICS, UNITS
from toolkit.errors import InputRefused, UsageError

CHECK = "profile"
MAX_COMPONENTS = 32
MAX_FITTED = 500
MIN_IMAGES = 40
NUM_BINS = 20
TENSORS = (
    "log_probabilities", "targets", "statistics", "embeddings", "mean", "projection", "digests", "slices"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Profile:
    """A bundle's reference: N images, the last M of them with embeddings. `slices` names each image's slice."""

    report: Report
    predictions: Predictions
    statistics_NS: np.ndarray
    embeddings_MP: np.ndarray
    mean_D: np.ndarray
    projection_DP: np.ndarray
    digests: frozenset[str]
    slices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def source(self) -> str:
        """What the features are."""
        return str(self.report.details["embedding"]["source"])

    @property
    def compared(self) -> slice:
        """The rows that have an embedding."""
        return slice(len(self) - len(self.embeddings_MP), None)

    def embed(self, features_ND: np.ndarray) -> np.ndarray:
        """The embeddings (N, P) of features (N, D). Raises `InputRefused` where the bundle gives other features now."""
        if features_ND.shape[1] != len(self.mean_D):
            raise InputRefused(
                f"the reference profile was made from {len(self.mean_D)} features, the bundle gives {features_ND.shape[1]}: "
                "make the profile again (data@reference=...)."
            )
        return (features_ND - self.mean_D) @ self.projection_DP


def make_profile(
    bundle: Bundle, images: ImageSet, *, store: Store, split: str = "test", max_samples: int = 2000, seed: int = 0
) -> Profile:
    """Look at up to `max_samples` images of `split` through `bundle` and keep the profile beside its reports.

    Take images the model was not trained on: it knows those too well. A profile of the same images is made once. Raises
    `UsageError` for fewer than 40 images.
    """
    data = describe_data(images, split, 0)
    found = load_profile(store, bundle)
    asked = {"fingerprint": data["fingerprint"], "split": split, "max_samples": max_samples, "seed": seed}
    if found is not None and found.report.details["made_from"] == asked:
        return found
    seen = observe(bundle, images, split=split, max_samples=max_samples, seed=seed)
    if len(seen) < MIN_IMAGES:
        raise UsageError(
            f"data '{images.name}', split {split}: {len(seen)} images are too few for a reference profile; "
            f"{MIN_IMAGES} are the least, several hundred are of use."
        )
    tensors, explained = profile_tensors(seen)
    details = {
        "data": {**data, "num_samples": len(seen)},
        "made_from": asked,
        "labels": list(bundle.manifest.labels),
        "embedding": {
            "source": seen.source,
            "features": seen.features_ND.shape[1],
            "components": tensors["projection"].shape[1],
            "explained_variance": explained,
            "fitted_on": len(seen) - len(tensors["embeddings"]),
            "compared": len(tensors["embeddings"]),
        },
        "slices": sorted(set(seen.slices) - {""}),
        "histograms": _histograms(seen.predictions),
        "priors": _priors(seen, bundle.manifest.labels),
    }
    report = Report(CHECK, (bundle.digest,), "pass", _measurements(seen), details, environment())
    store.add_report(report, tensors=tensors)
    loaded = load_profile(store, bundle)
    assert loaded is not None
    return loaded


def load_profile(store: Store, bundle: Bundle) -> Profile | None:
    """The bundle's profile, or None where it has none. Raises `InputRefused` when it is damaged."""
    report = store.reports(bundle.digest).get(CHECK)
    if report is None:
        return None
    tensors = store.report_tensors(report)
    if set(tensors) != set(TENSORS):
        raise InputRefused(
            f"the reference profile of {bundle.short} is of another version: make it again (data@reference=...)."
        )
    return profile_from(report, tensors)


def profile_from(report: Report, named: Mapping[str, torch.Tensor]) -> Profile:
    """The profile that a report `profile` and its tensors are."""
    tensors = {name: tensor.numpy() for name, tensor in named.items()}
    names = ["", *report.details["slices"]]
    return Profile(
        report=report,
        predictions=Predictions(tensors["log_probabilities"], tensors["targets"]),
        statistics_NS=tensors["statistics"],
        embeddings_MP=tensors["embeddings"],
        mean_D=tensors["mean"],
        projection_DP=tensors["projection"],
        digests=frozenset(bytes(row).hex() for row in tensors["digests"]),
        slices=tuple(names[i] for i in tensors["slices"]),
    )


def profile_tensors(seen: Observed) -> tuple[dict[str, torch.Tensor], float]:
    """The profile's tensors, and the share of the features' variance that the components keep."""
    num_fitted = min(MAX_FITTED, len(seen) // 4)
    fitted_FD = seen.features_ND[:num_fitted].astype(np.float64)
    mean_D = fitted_FD.mean(axis=0)
    _, scales, directions = np.linalg.svd(fitted_FD - mean_D, full_matrices=False)
    kept = min(MAX_COMPONENTS, num_fitted // 2, int((scales > 1e-6 * max(scales[0], 1e-12)).sum()) or 1)
    deviations_P = np.maximum(scales[:kept] / np.sqrt(num_fitted - 1), 1e-12)
    projection_DP = directions[:kept].T / deviations_P
    embeddings_MP = (seen.features_ND[num_fitted:] - mean_D) @ projection_DP
    names = ["", *sorted(set(seen.slices) - {""})]
    arrays = {
        "log_probabilities": seen.predictions.log_probabilities_NK,
        "targets": seen.predictions.targets_N,
        "statistics": seen.statistics_NS,
        "embeddings": embeddings_MP,
        "mean": mean_D,
        "projection": projection_DP,
        "digests": np.array([list(bytes.fromhex(digest)) for digest in seen.digests], np.uint8),
        "slices": np.array([names.index(name) for name in seen.slices]),
    }
    explained = float((scales[:kept] ** 2).sum() / max((scales**2).sum(), 1e-12))
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, explained


def _measurements(seen: Observed) -> tuple[Measurement, ...]:
    found = [
        Measurement(f"image.{name}", float(seen.statistics_NS[:, i].mean()), unit=UNITS.get(name, "1"), n=len(seen))
        for i, name in enumerate(STATISTICS)
    ]
    found.append(Measurement("confidence", float(seen.predictions.confidences_N.mean()), n=len(seen)))
    if seen.is_labelled:
        right = seen.labelled().correct_N
        interval = share_interval(int(right.sum()), len(right))
        found.insert(0, Measurement("accuracy", float(right.mean()), interval=interval, n=len(right)))
    return tuple(found)


def _histograms(predictions: Predictions) -> Mapping[str, Any]:
    highest = float(np.log(predictions.num_classes))
    return {
        "confidence": _histogram(predictions.confidences_N, 1 / predictions.num_classes, 1.0),
        "entropy": _histogram(entropies(predictions), 0.0, highest),
    }


def _histogram(values_N: np.ndarray, low: float, high: float) -> dict[str, Any]:
    counts, edges = np.histogram(np.clip(values_N, low, high), NUM_BINS, (low, high))
    return {"low": low, "high": high, "counts": counts.tolist(), "edges": edges.tolist()}


def _priors(seen: Observed, labels: tuple[str, ...]) -> dict[str, Any]:
    predicted = np.bincount(seen.predictions.classes_N, minlength=len(labels))
    targets = seen.labelled().targets_N if seen.is_labelled else np.array([], int)
    found = {"predicted": dict(zip(labels, predicted.tolist(), strict=True))}
    if len(targets):
        found["labels"] = dict(zip(labels, np.bincount(targets, minlength=len(labels)).tolist(), strict=True))
    return found
