"""The page that convinces a person: one HTML file, verdict first, then the evidence. No network, readable on a phone.

Everything on it comes from manifests and stored reports; only the pictures of flipped images come from the data set. Values
from bundles and file names pass through jinja2's autoescape, because a bundle can come from anywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from toolkit.bundle import Bundle, Report, Store
from toolkit.data import ImageSet
from toolkit.release import quantities
from toolkit.release.drift_page import drift_view
from toolkit.release.page_attribution import overlays
from toolkit.release.page_figures import (
    SIDES,
    change_figure,
    confusion_figure,
    reliability_figure,
    roc_figure,
)
from toolkit.release.page_gallery import MAX_SHOWN, gallery
from toolkit.release.page_lineage import lineage_drawings
from toolkit.release.page_watch import watch
from toolkit.release.quantities import SCORES, Row, limited, rows
from toolkit.release.story import architecture, family_reports, input_size, story
from toolkit.release.templates import render_template

HEADLINE = ("balanced_accuracy", "roc_auc")
COSTS = ("latency_median", "latency_p95", "throughput", "memory", "load_time", "macs", "parameters", "size")
FLIP_RATES = ("negative_flip_rate", "positive_flip_rate", "mcnemar_p")
FLIP_REST = ("relative_negative_flip_rate", "confident_negative_flips", "churn", "excess_churn")
THRESHOLD_WORDS = {"recall": "Recall", "precision": "Precision", "alert_rate": "Alerts", "false_positive_rate": "Fpr"}
OTHER_CHECKS = ("parity", "parity.fp16", "parity.int8", "pruning", "preprocessing", "calibration")


def render_page(
    store: Store, bundle: Bundle, *, baseline: Bundle | None, images: ImageSet | None, alias: str, time_utc: str = ""
) -> str:
    """The page on `bundle` as the successor of `baseline` under `alias`, from the reports in `store`."""
    reports = store.reports(bundle.digest)
    family = family_reports(store, bundle)
    gate = reports.get("gate")
    new_story, old_story = story(store, bundle), story(store, baseline) if baseline else []
    context = {
        "alias": alias,
        "time_utc": time_utc,
        "candidate": bundle,
        "baseline": baseline,
        "candidate_name": architecture(bundle.manifest),
        "baseline_name": architecture(baseline.manifest) if baseline else None,
        "candidate_input": input_size(bundle.manifest),
        "baseline_input": input_size(baseline.manifest) if baseline else None,
        "verdict": gate.verdict if gate else "none",
        "limits": limited(gate) if gate else [],
        "explanations": gate.details.get("limits", {}) if gate else {},
        "story": new_story,
        "old_story": old_story,
        "drawings": lineage_drawings(store, [("old", old_story), ("new", new_story)]),
        "watched": watch(gate, store.reports(baseline.digest).get("drift") if baseline else None) if gate else [],
        "others": {name: family[name] for name in OTHER_CHECKS if name in family},
        "evaluation": reports.get("evaluate"),
        "drift": _drift(store, baseline, images),
        "gate": gate,
        "environment": _environment(gate, reports),
        "q": quantities,
        **(_comparison(gate, images) if gate else {}),
        "looks": _looks(gate, bundle, baseline, images) if gate and baseline else [],
    }
    return render_template("page.html.j2", **context)


def _comparison(gate: Report, images: ImageSet | None) -> dict[str, Any]:
    """What the page shows of old against new."""
    found = rows(gate)
    quality = [row for row in found if row.metric not in COSTS and not row.metric.startswith("alert_")]
    overall = [row for row in quality if not row.scope]
    scoped = [row for row in quality if row.scope.startswith("slice=")]
    flips = gate.details.get("flips", [])
    counts = {kind: sum(flip["kind"] == kind for flip in flips) for kind in MAX_SHOWN}
    return {
        "data": gate.details.get("data", {}),
        "tiles": _tiles(gate, found),
        "overall": overall,
        "by_slice": {scope: [r for r in scoped if r.scope == scope] for scope in dict.fromkeys(r.scope for r in scoped)},
        "by_label": [row for row in quality if row.scope.startswith("label=")],
        "alerts": [row for row in found if row.metric.startswith("alert_")],
        "alert_flips": next((m for m in gate.measurements if m.name == "alert_negative_flip_rate"), None),
        "operating_point": gate.details.get("operating_point", {}),
        "costs": [row for row in found if row.metric in COSTS],
        "flip_rates": _flip_rates(gate),
        "flip_rest": [m for m in gate.measurements if quantities.parse(m.name).metric in FLIP_REST],
        "flip_counts": counts,
        "gallery": gallery(flips, images),
        "flips": flips,
        "flip_choices": _flip_choices(flips, gate.details.get("labels", [])),
        "thresholds": _thresholds(gate),
        "attributions": gate.details.get("attributions", {}),
        "alike": [m for m in gate.measurements if m.name.startswith("attribution_agreement")],
        "contract": gate.details.get("contract", []),
        "adaptation": gate.details.get("adaptation", {}),
        "statistics": gate.details.get("statistics", {}),
        "figures": _figures(gate, [row for row in overall + scoped if row.metric in SCORES]),
    }


def _looks(gate: Report, bundle: Bundle, baseline: Bundle, images: ImageSet | None) -> list[dict[str, Any]]:
    """The pictures of where old and new look."""
    specs = {"baseline": baseline.manifest.preprocessing, "candidate": bundle.manifest.preprocessing}
    return overlays(gate.details.get("attributions", {}), images, specs)


def _flip_rates(gate: Report) -> list[dict[str, Any]]:
    """Negative and positive flips with McNemar's p, over all images and by slice."""
    found: dict[str, dict[str, Any]] = {}
    for measurement in gate.measurements:
        name = quantities.parse(measurement.name)
        if name.metric in FLIP_RATES:
            found.setdefault(name.where, {"where": name.where})[name.metric] = measurement
    return list(found.values())


def _tiles(gate: Report, found: list[Row]) -> list[dict[str, str]]:
    """The key figures on top: two scores, the negative flips, latency and size."""
    by_name = {(row.metric, row.scope): row for row in found}
    tiles = []
    for metric in (*HEADLINE, "latency_median", "size"):
        row = by_name.get((metric, ""))
        if row is not None and row.candidate.value is not None:
            tiles.append(
                {
                    "title": row.name.title,
                    "value": quantities.show_value(row.candidate),
                    "from": quantities.show_value(row.baseline),
                    "change": quantities.show_value(row.change) if row.change else "",
                    "direction": row.direction,
                }
            )
    negative = {m.name: m for m in gate.measurements}.get("negative_flip_rate")
    if negative is not None:
        value, interval = quantities.show_value(negative), quantities.show_interval(negative)
        tiles.insert(2, {"title": "Negative flips", "value": value, "note": f"95% interval {interval}", "direction": "same"})
    return tiles


def _flip_choices(flips: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """What flips can be filtered by: the name of the choice, its title and its options."""
    if not flips:
        return []
    slices = sorted({flip["slice"] for flip in flips} - {""})
    kinds = ["was right, now wrong", "was wrong, now right"]
    named = [(name, title, list(labels)) for name, title in (("truth", "truth"), ("baseline", "old"), ("candidate", "new"))]
    return [("kind", "kind", kinds), *([("slice", "slice", slices)] if len(slices) > 1 else []), *named]


def _thresholds(gate: Report) -> dict[str, Any]:
    """The figures of both at every threshold, and `at` the ones in use: the service's and its successor's, or 0.5."""
    found = gate.details.get("thresholds")
    if not found:
        return {}
    in_use = {m.name: m.value for m in gate.measurements if m.name.startswith("alert_threshold.")}
    rows_shown = [
        {"threshold": row["threshold"], **{side: {THRESHOLD_WORDS[k]: v for k, v in row[side].items()} for side in SIDES}}
        for row in found["table"]
    ]
    at = {}
    for side in SIDES:
        threshold = in_use.get(f"alert_threshold.{side}") or 0.5
        nearest = min(rows_shown, key=lambda row: abs(row["threshold"] - threshold))
        at[side] = {"threshold": nearest["threshold"], **nearest[side]}
    return {"label": found["label"], "rows": rows_shown, "at": at}


def _figures(gate: Report, scored: list[Row]) -> dict[str, Markup]:
    """All charts by name; a chart whose data is not there is left out."""
    curves: Mapping[str, Any] = gate.details.get("curves", {})
    labels = gate.details.get("labels", [])
    values = {m.name: m.value for m in gate.measurements if m.value is not None}
    figures = {"changes": change_figure(scored)} if scored else {}
    lowest = [one["lower"] for part in curves.values() for one in part.get("reliability", [])]
    start = 0.45 if lowest and min(lowest) >= 0.45 else 0.0
    for side in SIDES:
        part = curves.get(side, {})
        if part.get("reliability"):
            figures[f"reliability_{side}"] = reliability_figure(
                part["reliability"], side=side, ece=values.get(f"ece.{side}"), start=start
            )
        if part.get("confusion"):
            figures[f"confusion_{side}"] = confusion_figure(part["confusion"], labels=labels, side=side)
    roc = {side: part["roc"] for side, part in curves.items() if part.get("roc")}
    if len(roc) == 2:
        two = len(labels) == 2  # with more labels the area is a mean over all of them, the curve that of one
        areas = {side: values[f"roc_auc.{side}"] for side in roc if two and f"roc_auc.{side}" in values}
        at = {side: (one["Fpr"], one["Recall"]) for side, one in _thresholds(gate).get("at", {}).items()}
        figures["roc"] = roc_figure(roc, areas=areas, at=at)
    return figures


def _drift(store: Store, baseline: Bundle | None, images: ImageSet | None) -> dict[str, Any] | None:
    """How the data had moved away from the model in service, where that was looked at."""
    report = store.reports(baseline.digest).get("drift") if baseline else None
    return drift_view(report, images) if report else None


def _environment(gate: Report | None, reports: Mapping[str, Report]) -> Mapping[str, Any]:
    chosen = gate or next(iter(reports.values()), None)
    return chosen.environment if chosen else {}
