"""How good is one bundle on a data set: quality overall, per slice and per label, with bootstrap intervals.

The bundle is asked through the runner it would be served with (onnxruntime when it is exported) and its own preprocessing.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.backends import open_runner
from toolkit.bundle import Bundle, Measurement, Report, environment
from toolkit.checks.intervals import NUM_RESAMPLES, Interval, bootstrap, percentile_interval
from toolkit.checks.metrics import (
    METRICS,
    NUM_ECE_BINS,
    Predictions,
    confusion,
    precisions,
    recalls,
    reliability,
    roc_curve,
)
from toolkit.checks.predict import predict
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import InputRefused

UNITS = {"nll": "nats"}
MAX_AUC_CELLS = 1_000_000
MAX_LABELS = 50

STATISTICS = {
    "interval": "two-sided 95%",
    "bootstrap": f"paired percentile bootstrap over samples, {NUM_RESAMPLES} resamples",
    "ece": f"top label, {NUM_ECE_BINS} equal-width bins",
    "brier": "summed over classes, 0..2",
    "roc_auc": "class 1 for two classes, else macro one-versus-rest",
}


def evaluate(bundle: Bundle, images: ImageSet, *, split: str = "test", seed: int = 0) -> Report:
    """Measure `bundle` on one split of `images`: a report `evaluate` without limits.

    Raises `InputRefused` when the bundle's labels are not the data's, `UsageError` for an empty split.
    """
    chosen = images.split(split)
    pixels = load_pixels(chosen, bundle.manifest.preprocessing)
    predictions = predict_bundle(bundle, pixels)
    measurements = quality({"": predictions}, slices=pixels.slices, labels=images.labels, seed=seed)
    details = {
        "data": describe_data(images, split, len(pixels)),
        "labels": list(images.labels),
        "statistics": STATISTICS,
        **curves(predictions),
    }
    return Report("evaluate", (bundle.digest,), "pass", tuple(measurements), details, environment())


def predict_bundle(bundle: Bundle, pixels: Pixels) -> Predictions:
    """The bundle's predictions on `pixels`, its logits brought into the order of the data's labels by name.

    Raises `InputRefused` when the two label sets differ.
    """
    labels = bundle.manifest.labels
    if sorted(labels) != sorted(pixels.labels):
        raise InputRefused(
            f"bundle {bundle.short} knows the labels {', '.join(labels)}; the data has {', '.join(pixels.labels)}. "
            "Measure it on data with its own labels."
        )
    logits_NK = predict(open_runner(bundle), pixels)
    columns = [labels.index(label) for label in pixels.labels]
    return Predictions.from_logits(logits_NK[:, columns], pixels.targets_N.numpy())


def describe_data(images: ImageSet, split: str, num_used: int) -> dict[str, Any]:
    """What a report says of its data set."""
    return {
        "name": images.name,
        "licence": images.licence,
        "split": split,
        "num_samples": num_used,
        "fingerprint": images.fingerprint(),
    }


def curves(predictions: Predictions, positive_class: int | None = None) -> dict[str, Any]:
    """What charts need: reliability bins, ROC points and, up to 50 labels, the confusion matrix.

    The ROC points are those of `positive_class`, by default the second of two classes; without one there are none.
    """
    counts = confusion(predictions).tolist() if predictions.num_classes <= MAX_LABELS else None
    if positive_class is None and predictions.num_classes == 2:
        positive_class = 1
    roc = [] if positive_class is None else roc_curve(predictions, positive_class)
    return {"reliability": reliability(predictions), "roc": roc, "confusion": counts}


def quality(
    models: Mapping[str, Predictions], *, slices: Sequence[str], labels: Sequence[str], seed: int = 0
) -> list[Measurement]:
    """Every metric of one or two models overall, then per slice, then recall and precision per label.

    `models` maps a side to predictions of the same samples: `{"": p}`, or `{"baseline": p, "candidate": q}`, which adds
    the paired `difference`. Names are `<metric>.<side>[slice=<slice>]`.
    """
    found = _scope_quality(models, "", seed)
    slices_N = np.asarray(slices)
    names = sorted(set(slices) - {""})
    for name in names:
        part = {side: predictions.take(slices_N == name) for side, predictions in models.items()}
        found += _scope_quality(part, f"[slice={name}]", seed)
    if len(labels) <= MAX_LABELS:
        found += _label_quality(models, labels, seed)
    return found


def _scope_quality(models: Mapping[str, Predictions], scope: str, seed: int) -> list[Measurement]:
    num_samples = len(next(iter(models.values())))
    functions = {
        (metric, side): functools.partial(function, predictions)
        for metric, function in METRICS.items()
        for side, predictions in models.items()
    }
    points = {key: function(np.ones((1, num_samples))) for key, function in functions.items()}
    affordable = {
        f"{metric}.{side}": function
        for (metric, side), function in functions.items()
        if metric != "roc_auc" or num_samples * next(iter(models.values())).num_classes <= MAX_AUC_CELLS
    }
    spread = bootstrap(affordable, num_samples=num_samples, seed=seed)
    found = []
    for metric in METRICS:
        sides = {side: (points[metric, side][0], spread.get(f"{metric}.{side}")) for side in models}
        found += _side_measurements(metric, scope, sides, num_samples)
    return found


def _label_quality(models: Mapping[str, Predictions], labels: Sequence[str], seed: int) -> list[Measurement]:
    targets_N = next(iter(models.values())).targets_N
    num_samples = len(targets_N)
    tables = {"recall": recalls, "precision": precisions}
    functions = {
        (metric, side): functools.partial(function, predictions)
        for metric, function in tables.items()
        for side, predictions in models.items()
    }
    points = {key: function(np.ones((1, num_samples)))[0] for key, function in functions.items()}
    spread = bootstrap({f"{m}.{s}": f for (m, s), f in functions.items()}, num_samples=num_samples, seed=seed)
    found = []
    for index, label in enumerate(labels):
        for metric in tables:
            sides = {side: (points[metric, side][index], spread[f"{metric}.{side}"][:, index]) for side in models}
            count = int((targets_N == index).sum())
            found += _side_measurements(metric, f"[label={label}]", sides, count)
    return found


def _side_measurements(
    metric: str, scope: str, sides: Mapping[str, tuple[float, np.ndarray | None]], num_samples: int
) -> list[Measurement]:
    """One measurement a side, and the paired difference candidate - baseline when there are two."""
    values = dict(sides)
    if len(values) == 2:
        (old, old_B), (new, new_B) = values["baseline"], values["candidate"]
        values["difference"] = (new - old, None if old_B is None or new_B is None else new_B - old_B)
    return [
        Measurement(
            f"{metric}.{side}{scope}" if side else f"{metric}{scope}",
            None if np.isnan(point) else float(point),
            unit=UNITS.get(metric, "1"),
            interval=_interval(point, values_B),
            n=num_samples,
        )
        for side, (point, values_B) in values.items()
    ]


def _interval(point: float, values_B: np.ndarray | None) -> Interval | None:
    """The percentile interval, or None where the bootstrap is so biased (ECE on few samples) that it leaves the value out."""
    found = None if np.isnan(point) or values_B is None else percentile_interval(values_B)
    return found if found is not None and found[0] <= point <= found[1] else None
