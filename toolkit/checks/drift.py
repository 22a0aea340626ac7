"""Is the new data still what the model knows? The check behind `toolkit drift`: profile against batch, evidence, decision.

Six families of tests are run (embeddings twice, image statistics, answers, labels, performance). Inside a family the
smallest Benjamini-Hochberg value stands for it (Simes' test of no change in any member); across families Holm holds the
false-alarm rate of the whole batch at `alpha`.
"""

import dataclasses
from typing import Any

import numpy as np

from toolkit.bundle import Bundle, Limit, Measurement, Report, environment
from toolkit.checks.drift_embedding import NUM_PERMUTATIONS, ClassifierTest, classifier_test, mmd
from toolkit.checks.drift_evidence import Counts, Found, components, histograms, slice_results, typical
from toolkit.checks.drift_performance import Change, accuracy_change, estimated_change, metric_change, probe
from toolkit.checks.drift_statistics import benjamini_hochberg, count_shift, holm, shift
from toolkit.checks.drift_verdict import Evidence, Grade, Threshold, Thresholds, decide, grade, verdict_for
from toolkit.checks.evaluate import describe_data
from toolkit.checks.metrics import Predictions, balanced_accuracy, roc_auc
from toolkit.checks.observed import Observed, entropies, observe
from toolkit.checks.obsolescence import Obsolescence, obsolescence
from toolkit.checks.profile import Profile
from toolkit.data import ImageSet
from toolkit.data.image_statistics import STATISTICS
from toolkit.errors import InputRefused

CHECK = "drift"
MAX_AUC_CELLS = 10_000  # resampled ranking of more takes minutes


def drift(
    bundle: Bundle,
    profile: Profile,
    images: ImageSet,
    *,
    thresholds: Thresholds,
    split: str = "test",
    max_samples: int = 2000,
    seed: int = 0,
) -> Report:
    """Compare up to `max_samples` images of `split` with the bundle's profile: the report `drift` with its decision.

    Images that the profile was made from are left out. Raises `UsageError` when none is left, `InputRefused` when the bundle
    gives other features than it gave the profile.
    """
    new = observe(bundle, images, split=split, max_samples=max_samples, seed=seed, known=profile.digests)
    if new.source != profile.source:
        raise InputRefused(
            f"the reference profile of {bundle.short} was made from {profile.source}, the bundle now gives {new.source}: make "
            "it again (data@reference=...)."
        )
    aged = obsolescence(bundle)
    data = describe_data(images, split, len(new))
    details: dict[str, Any] = {
        "data": {**data, "num_known": new.num_known},
        "reference": {**profile.report.details["data"], "compared": len(profile.embeddings_MP)},
        "labels": list(bundle.manifest.labels),
        "features": profile.report.details["embedding"],
        "thresholds": dataclasses.asdict(thresholds),
        "obsolescence": aged.to_details(),
        "is_labelled": new.is_labelled,
    }
    sizes = _sizes(profile, new, thresholds)
    if not all(m.passed for m in sizes):
        details |= {"decision": "undecided", "reasons": [_missing(sizes, thresholds)]}
        return Report(CHECK, (bundle.digest,), "undecided", tuple(sizes), details, environment())
    found = measure(profile, new, thresholds, seed=seed)
    evidence = evidence_of(found, new, thresholds, aged)
    decision, reasons = decide(evidence)
    details |= {"decision": decision, "reasons": reasons, "tests": found.tests(thresholds.alpha.value), **found.to_details(new)}
    details |= _pictures(profile, new, found.told_apart, min_samples=int(thresholds.min_samples.value), seed=seed)
    measurements = (*found.measurements(evidence, thresholds), *sizes, *_aged(aged))
    return Report(CHECK, (bundle.digest,), verdict_for(decision), measurements, details, environment())


def measure(
    profile: Profile, new: Observed, thresholds: Thresholds, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> Found:
    """Every test and effect of a batch that is large enough."""
    embeddings_NP = profile.embed(new.features_ND)
    distance, mmd_p = mmd(profile.embeddings_MP, embeddings_NP, num_permutations=num_permutations, seed=seed)
    told_apart = classifier_test(profile.embeddings_MP, embeddings_NP, num_permutations=num_permutations, seed=seed)
    images = [shift(name, profile.statistics_NS[:, i], new.statistics_NS[:, i]) for i, name in enumerate(STATISTICS)]
    predicted = _counts(profile.predictions.classes_N, new.predictions.classes_N, profile.predictions.num_classes, seed)
    sure = [
        shift("confidence", profile.predictions.confidences_N, new.predictions.confidences_N),
        shift("entropy", entropies(profile.predictions), new.entropies_N()),
    ]
    raw = {
        "embeddings (MMD)": mmd_p,
        "embeddings (classifier)": told_apart.p,
        "image statistics": min(benjamini_hochberg([one.p for one in images])),
        "answers": min(benjamini_hochberg([predicted.shift.p, *(one.p for one in sure)])),
    }
    labelled = profile.predictions.take(profile.predictions.targets_N >= 0)
    labels, changes, estimate = None, {}, None
    if len(labelled) and new.is_labelled:
        seen = new.labelled()
        labels = _counts(labelled.targets_N, seen.targets_N, seen.num_classes, seed)
        changes = _changes(labelled, seen, num_permutations, seed)
        raw |= {"labels": labels.shift.p, "performance": min(benjamini_hochberg([c.p for c in changes.values()]))}
    if len(labelled):
        estimate = estimated_change(labelled, new.predictions, seed=seed)
    return Found(
        mmd=distance,
        told_apart=told_apart,
        images=images,
        predicted=predicted,
        sure=sure,
        labels=labels,
        changes=changes,
        estimate=estimate,
        probes=_probes(profile, embeddings_NP, new) if changes else None,
        raw=raw,
        adjusted=holm(raw),
    )


def _pictures(profile: Profile, new: Observed, told_apart: ClassifierTest, *, min_samples: int, seed: int) -> dict[str, Any]:
    """What the drift looks like, for the page."""
    embeddings_NP = profile.embed(new.features_ND)
    return {
        "slices": slice_results(profile, embeddings_NP, new, min_samples=min_samples, seed=seed),
        "components": components(profile, embeddings_NP, new),
        "typical": typical(told_apart.scores_T[len(profile.embeddings_MP) :], new),
        "histograms": histograms(profile, embeddings_NP, new),
    }


def _counts(reference_M: np.ndarray, new_N: np.ndarray, num_classes: int, seed: int) -> Counts:
    reference_K, new_K = (np.bincount(part, minlength=num_classes).tolist() for part in (reference_M, new_N))
    return Counts(reference_K, new_K, count_shift(reference_K, new_K, seed=seed))


def _changes(reference: Predictions, new: Predictions, num_permutations: int, seed: int) -> dict[str, Change]:
    metrics = {"balanced_accuracy": balanced_accuracy}
    if (len(reference) + len(new)) * new.num_classes <= MAX_AUC_CELLS:
        metrics["roc_auc"] = roc_auc
    found = {
        name: metric_change(metric, reference, new, num_permutations=num_permutations, seed=seed)
        for name, metric in metrics.items()
    }
    return {"accuracy": accuracy_change(reference, new), **{name: one for name, one in found.items() if one is not None}}


def _probes(profile: Profile, embeddings_NP: np.ndarray, new: Observed) -> tuple[float | None, float | None]:
    """What a new head on the model's features reaches on reference and new data."""
    found = []
    for embeddings, targets in (
        (profile.embeddings_MP, profile.predictions.targets_N[profile.compared]),
        (embeddings_NP, new.predictions.targets_N),
    ):
        known = targets >= 0
        found.append(probe(embeddings[known], targets[known]) if known.any() else None)
    return found[0], found[1]


def evidence_of(found: Found, new: Observed, thresholds: Thresholds, aged: Obsolescence) -> Evidence:
    """What the tests and effects of a batch say, graded."""
    alpha = thresholds.alpha.value
    significant = {name for name, p in found.adjusted.items() if p <= alpha}
    answers = "answers" in significant
    shown = {
        "embedding": (
            bool(significant & {"embeddings (MMD)", "embeddings (classifier)"}),
            found.told_apart.auc,
            thresholds.separable,
        ),
        "image": ("image statistics" in significant, max(one.ks for one in found.images), thresholds.image_ks),
        "labels": ("labels" in significant, found.labels.shift.psi if found.labels else 0.0, thresholds.psi),
    }
    grades = {name: grade(is_significant=s, effect=e, limit=t) for name, (s, e, t) in shown.items()}
    by_class = grade(is_significant=answers, effect=found.predicted.shift.psi, limit=thresholds.psi)
    by_confidence = grade(is_significant=answers, effect=max(one.ks for one in found.sure), limit=thresholds.image_ks)
    return Evidence(
        **grades,
        predictions=max(by_class, by_confidence),
        loss=_loss(found, significant, thresholds.accuracy_loss),
        possible_loss=_possible(found, thresholds.accuracy_loss),
        is_labelled=bool(found.changes),
        is_another_world=grades["embedding"] == Grade.LARGE and found.told_apart.auc >= thresholds.another_world.value,
        probe_recovers=_recovers(found, thresholds.accuracy_loss),
        new_labels=new.new_labels,
        broken=aged.broken,
        is_behind=aged.releases_behind > thresholds.releases_behind.value,
    )


def _loss(found: Found, significant: set[str], limit: Threshold) -> Grade:
    """The loss measured with labels; without, the estimated one where something else was shown and its interval is clear."""
    if found.changes:
        worst = max(change.before - change.after for change in found.changes.values())
        return grade(is_significant="performance" in significant, effect=worst, limit=limit)
    if found.estimate is None or not significant:
        return Grade.NONE
    change: Change = found.estimate[0]
    return grade(is_significant=change.interval[1] < 0, effect=change.before - change.after, limit=limit)


def _possible(found: Found, limit: Threshold) -> Grade:
    """What labels leave open: LARGE where the measured loss is beyond its limit, SMALL where only its interval is."""
    losses = [(change.before - change.after, -change.interval[0]) for change in found.changes.values()]
    if any(loss > limit.value for loss, _ in losses):
        return Grade.LARGE
    return Grade.SMALL if any(most > limit.value for _, most in losses) else Grade.NONE


def _recovers(found: Found, limit: Threshold) -> bool | None:
    if found.probes is None or found.probes[0] is None or found.probes[1] is None:
        return None
    return found.probes[1] >= found.probes[0] - limit.value


def _sizes(profile: Profile, new: Observed, thresholds: Thresholds) -> list[Measurement]:
    limit = Limit(">=", thresholds.min_samples.value, thresholds.min_samples.reason)
    sizes = {"samples.new": len(new), "samples.reference": len(profile.embeddings_MP)}
    return [Measurement.against(name, float(size), limit, unit="images") for name, size in sizes.items()]


def _missing(sizes: list[Measurement], thresholds: Thresholds) -> str:
    few = [f"{m.value:.0f} {m.name.partition('.')[2]} images" for m in sizes if not m.passed]
    return f"Not enough data to say: {' and '.join(few)}, {thresholds.min_samples.value:.0f} needed."


def _aged(aged: Obsolescence) -> list[Measurement]:
    found = [
        Measurement(
            "runs_here",
            float(not aged.broken),
            limit=Limit("==", 1, "A model that cannot run cannot serve."),
            passed=not aged.broken,
        ),
        Measurement("releases_behind", float(aged.releases_behind), unit="releases"),
    ]
    if aged.opset is not None:
        found.append(Measurement("opset_behind", float(max(0, aged.newest_opset - aged.opset)), unit="opsets"))
    return found
