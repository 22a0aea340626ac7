"""May the candidate replace the baseline? The gate: both answer the same images, and every limit gets its line.

Each bundle sees the images through its own preprocessing and runner, as it would in service. Quality and flips are paired by
sample; the contract is compared as data; parity is the candidate's own report, because a model that was not exported
faithfully must not pass on the strength of another one's numbers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.bundle import Bundle, Measurement, Report, environment, verdict_of
from toolkit.checks.attribution import explain
from toolkit.checks.evaluate import STATISTICS, curves, describe_data, predict_bundle, quality
from toolkit.checks.flips import Flips, flip_measurements, list_flips
from toolkit.checks.intervals import accuracy_difference_interval
from toolkit.checks.metrics import Predictions
from toolkit.checks.operating_point import Service, operating_point, threshold_table
from toolkit.checks.regression_contract import contract_differences, contract_measurements
from toolkit.checks.regression_cost import cost_measurements, served_graphs
from toolkit.checks.regression_footprint import footprint_measurements
from toolkit.checks.regression_limits import GateLimits, Rule, judge
from toolkit.checks.regression_slices import worse_slices
from toolkit.checks.training_overlap import SEEN, Overlap
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import UsageError

PINNED = "pinned_negative_flips"
CHOICE = "val"


def regression(
    candidate: Bundle,
    baseline: Bundle,
    images: ImageSet,
    *,
    limits: GateLimits,
    parity: Report | None = None,
    split: str = "test",
    seed: int = 0,
    latency_rounds: int = 100,
    service: Service | None = None,
    batch: int | None = None,
    overlap: Overlap | None = None,
) -> Report:
    """The report `gate` over (candidate, baseline) on one split of `images`, held against `limits`.

    `parity` is the candidate's stored parity report; without it parity is undecided. `service` says how the baseline is used:
    its threshold is carried over to the candidate, and no answer on a pinned image may get worse. With `batch` (its size)
    throughput, memory and load time are measured, each model in a process of its own. `overlap` counts the test images that the
    candidate was trained on: none may be. Raises `InputRefused` when a bundle's label set is not the data's, `UsageError` for
    limits that name what was not measured.
    """
    service = service or Service()
    if latency_rounds < 10:
        raise UsageError(f"latency_rounds is {latency_rounds}; take at least 10, a median of fewer says little")
    pixels = _paired_pixels(images.split(split), baseline, candidate)
    bundles = {"baseline": baseline, "candidate": candidate}
    models = {side: predict_bundle(bundle, pixels[side]) for side, bundle in bundles.items()}
    shared = pixels["baseline"]
    flips = Flips(models["baseline"], models["candidate"])
    first = {side: pixels[side].images_NCHW[:1].numpy().astype(np.float32) for side in models}
    slice_counts, slice_results = worse_slices(_by_slice(flips, shared.slices))
    measurements = [
        *_with_closed_form(quality(models, slices=shared.slices, labels=shared.labels, seed=seed), flips, shared.slices),
        *_flips_by_slice(flips, shared.slices),
        *slice_counts,
        *contract_measurements(baseline.manifest, candidate.manifest),
        Measurement("parity.passed", _parity_value(parity)),
        *_costs(bundles, first, rounds=latency_rounds, batch=batch, seed=seed),
        *([] if overlap is None else [overlap.measurement()]),
    ]
    pinned, limits = _pinned(flips, service.pinned_keys(shared.keys), shared.keys, limits)
    alerts, acted = _operating_point(service, baseline, candidate, images, split=split, models=models, seed=seed)
    looked, attributions = explain(bundles, pixels, flips, seed=seed)
    judged, explanations = _judged([*measurements, *pinned, *alerts, *looked], limits, overlap)
    details = {
        "data": describe_data(images, split, len(shared)),
        "labels": list(shared.labels),
        "statistics": {**STATISTICS, "accuracy.difference": _accuracy_method(flips)},
        "limits": explanations,
        "slices": slice_results,
        "contract": [dataclasses.asdict(d) for d in contract_differences(baseline.manifest, candidate.manifest)],
        "operating_point": acted,
        "attributions": attributions,
        "flips": list_flips(flips, keys=shared.keys, slices=shared.slices, labels=shared.labels),
        **_charted(models, shared.labels, service),
    }
    return Report("gate", (candidate.digest, baseline.digest), verdict_of(judged), tuple(judged), details, environment())


def _charted(models: Mapping[str, Predictions], labels: Sequence[str], service: Service) -> dict[str, Any]:
    """What the charts of the report need. Thresholds are those on the label that is acted on, or on the second of two."""
    acted = service.label if service.label is not None else labels[1] if len(labels) == 2 else None
    column = None if acted is None else labels.index(acted)
    found: dict[str, Any] = {"curves": {side: curves(predictions, column) for side, predictions in models.items()}}
    if column is not None:
        found["thresholds"] = {"label": acted, "table": threshold_table(models, column)}
    return found


def _judged(
    measurements: list[Measurement], limits: GateLimits, overlap: Overlap | None
) -> tuple[list[Measurement], dict[str, dict[str, Any]]]:
    """The measurements held against the limits, with their explanations; that of the overlap in its own words."""
    judged, explanations = judge(measurements, limits if overlap is None else overlap.held(limits))
    if overlap is not None and overlap.text and SEEN in explanations:
        explanations[SEEN]["advice"] = overlap.text
    return judged, explanations


def _pinned(
    flips: Flips, pinned: frozenset[str], keys: tuple[str, ...], limits: GateLimits
) -> tuple[list[Measurement], GateLimits]:
    """The negative flips on pinned images; none is allowed unless the limits say otherwise."""
    if not pinned:
        return [], limits
    chosen_N = np.array([key in pinned for key in keys])
    count = int((flips.negative_N & chosen_N).sum())
    if PINNED not in [rule.subject for rule in limits.rules.values()]:
        rule = Rule(PINNED, "==", 0, reason="Pinned images are those whose answers must not get worse.")
        limits = GateLimits({**limits.rules, "pinned": rule})
    return [Measurement(PINNED, count, unit="images", n=int(chosen_N.sum()))], limits


def _operating_point(
    service: Service,
    baseline: Bundle,
    candidate: Bundle,
    images: ImageSet,
    *,
    split: str,
    models: Mapping[str, Predictions],
    seed: int,
) -> tuple[list[Measurement], dict[str, Any]]:
    if service.label is None:
        return [], {}
    if split == CHOICE:
        raise UsageError(f"service.label: the candidate's threshold is chosen on the {CHOICE} split; judge it on another one.")
    if not len(images.split(CHOICE)):
        raise UsageError(f"service.label: {images.name} has no {CHOICE} split to choose the candidate's threshold on.")
    pixels = _paired_pixels(images.split(CHOICE), baseline, candidate)
    seen = {
        "baseline": predict_bundle(baseline, pixels["baseline"]),
        "candidate": predict_bundle(candidate, pixels["candidate"]),
    }
    return operating_point(service, images.labels, seen, dict(models), seed=seed)


def _paired_pixels(images: ImageSet, baseline: Bundle, candidate: Bundle) -> dict[str, Pixels]:
    """Both bundles' inputs for the samples that both could read, in the same order."""
    old_spec, new_spec = baseline.manifest.preprocessing, candidate.manifest.preprocessing
    old = load_pixels(images, old_spec)
    new = old if old_spec == new_spec else load_pixels(images, new_spec)
    if old.keys == new.keys:
        return {"baseline": old, "candidate": new}
    shared = [key for key in old.keys if key in set(new.keys)]
    return {"baseline": _reordered(old, shared), "candidate": _reordered(new, shared)}


def _reordered(pixels: Pixels, keys: list[str]) -> Pixels:
    place = {key: index for index, key in enumerate(pixels.keys)}
    return pixels.take([place[key] for key in keys])


def _with_closed_form(measurements: list[Measurement], flips: Flips, slices: tuple[str, ...]) -> list[Measurement]:
    """`accuracy.difference` with the closed-form interval of the discordant counts in place of the bootstrap's.

    Two models that give the same outputs throughout keep the bootstrap's interval, [0, 0]: there is nothing to estimate.
    """
    if np.array_equal(flips.old.log_probabilities_NK, flips.new.log_probabilities_NK):
        return measurements
    parts = {"accuracy.difference": flips}
    parts |= {f"accuracy.difference[slice={name}]": part for name, part in _by_slice(flips, slices).items()}
    return [
        dataclasses.replace(m, interval=_accuracy_interval(parts[m.name])[0]) if m.name in parts else m for m in measurements
    ]


def _accuracy_interval(flips: Flips) -> tuple[tuple[float, float], str]:
    return accuracy_difference_interval(flips.num_negative, flips.num_positive, len(flips))


def _accuracy_method(flips: Flips) -> str:
    return f"{_accuracy_interval(flips)[1]} interval for paired shares"


def _flips_by_slice(flips: Flips, slices: tuple[str, ...]) -> list[Measurement]:
    found = flip_measurements(flips)
    for name, part in _by_slice(flips, slices).items():
        found += flip_measurements(part, scope=f"[slice={name}]")
    return found


def _by_slice(flips: Flips, slices: tuple[str, ...]) -> dict[str, Flips]:
    slices_N = np.asarray(slices)

    def part(predictions: Predictions, name: str) -> Predictions:
        return predictions.take(slices_N == name)

    return {name: Flips(part(flips.old, name), part(flips.new, name)) for name in sorted(set(slices) - {""})}


def _costs(
    bundles: Mapping[str, Bundle], images: Mapping[str, np.ndarray], *, rounds: int, batch: int | None, seed: int
) -> list[Measurement]:
    with served_graphs(bundles) as graphs:
        costs = cost_measurements(bundles, graphs, images, rounds=rounds, seed=seed)
        return costs if batch is None else [*costs, *footprint_measurements(bundles, graphs, images, batch=batch)]


def _parity_value(parity: Report | None) -> float | None:
    values: dict[str, Any] = {"pass": 1.0, "fail": 0.0, "undecided": None}
    return None if parity is None else values[parity.verdict]
