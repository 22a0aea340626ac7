"""Drift as a page of its own, and as a part of the release page: decision first, then what moved and what it looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.data import ImageSet
from toolkit.release import quantities
from toolkit.release.drift_figures import cloud_figure, histogram_figure
from toolkit.release.drift_table import MEANINGS, compared, effects, result, show_p
from toolkit.release.page_gallery import thumbnail
from toolkit.release.templates import render_template

TITLES = {
    "brightness": "Brightness",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "noise": "Pixel noise",
    "colour": "Colour",
    "size": "Size",
    "aspect": "Aspect ratio",
    "confidence": "Confidence",
    "entropy": "Entropy of the answer",
}
MAX_HISTOGRAMS = 4
MAX_LABELS = 12


def write_drift(report: Report, images: ImageSet | None, path: Path) -> Path:
    """Write the page of a report `drift` to `path`; `images` supplies the pictures. Returns the path."""
    context = {"drift": drift_view(report, images), "digest": report.subjects[0], "environment": report.environment}
    write_atomic(path, render_template("drift.html.j2", **context).encode())
    return path


def drift_view(report: Report, images: ImageSet | None) -> dict[str, Any]:
    """What the drift section of a page shows, from a report `drift`."""
    details = report.details
    rows = [
        {
            "title": quantities.parse(m.name).title,
            "value": quantities.show_value(m),
            "interval": quantities.show_interval(m),
            "limit": quantities.show_limit(m),
            "reason": m.limit.reason if m.limit else "",
            "result": result(m),
        }
        for m in effects(report)
    ]
    view: dict[str, Any] = {
        "decision": details["decision"],
        "meaning": MEANINGS[details["decision"]],
        "verdict": report.verdict,
        "reasons": details["reasons"],
        "compared": compared(details),
        "source": details["features"]["source"],
        "rows": rows,
        "aged": details["obsolescence"],
        "data": details["data"],
        "reference": details["reference"],
        "measured": "tests" in details,
    }
    return {**view, **(_measured(details, images) if "tests" in details else {})}


def _measured(details: Mapping[str, Any], images: ImageSet | None) -> dict[str, Any]:
    statistics = {one["name"]: one for one in details["statistics"]}
    ranked = sorted((name for name in statistics if name in details["histograms"]), key=lambda name: -statistics[name]["ks"])
    shown = [name for name in ranked if statistics[name]["ks"] > 0][:MAX_HISTOGRAMS]
    return {
        "tests": [{**test, "p": show_p(test["p"]), "adjusted": show_p(test["adjusted"])} for test in details["tests"]],
        "statistics": [_statistic(one) for one in details["statistics"]],
        "histograms": [
            {"title": TITLES[name], "picture": histogram_figure(details["histograms"][name], name=TITLES[name])}
            for name in shown
        ],
        "cloud": cloud_figure(details["histograms"]["points"]) if details["histograms"]["points"]["axes"] else None,
        "slices": details["slices"],
        "components": details["components"],
        "counts": _counts(details),
        "performance": details["performance"],
        "estimate": details.get("estimate"),
        "gallery": _gallery(details, images),
    }


def _statistic(one: Mapping[str, Any]) -> dict[str, str]:
    moved = (
        f"{one['moved']:+.1f} sd".replace("-", "−") if abs(one["moved"]) < 10 else "from none" if one["before"] == 0 else "far"
    )
    values = [f"{one[side]:.3g}".replace("-", "−") for side in ("before", "after")]
    return {
        "title": TITLES[one["name"]],
        "before": values[0],
        "after": values[1],
        "moved": moved if values[0] != values[1] or abs(one["moved"]) > 0.05 else "",
        "ks": f"{one['ks']:.2f}",
        "p": show_p(one["adjusted"]),
    }


def _counts(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of each label, answered and true, before and now."""
    found = []
    for kind, counts in details["counts"].items():
        totals = [max(1, sum(counts[side])) for side in ("reference_K", "new_K")]
        order = sorted(range(len(details["labels"])), key=lambda k: -counts["reference_K"][k] - counts["new_K"][k])
        for k in order[:MAX_LABELS]:
            shares = [
                f"{100 * counts[side][k] / total:.1f}%" for side, total in zip(("reference_K", "new_K"), totals, strict=True)
            ]
            found.append({"kind": kind, "label": details["labels"][k], "before": shares[0], "after": shares[1]})
    return found


def _gallery(details: Mapping[str, Any], images: ImageSet | None) -> dict[str, list[dict[str, Any]]]:
    sources = {sample.key: sample.source for sample in images.samples} if images is not None else {}
    names = details["labels"]
    cards: dict[str, list[dict[str, Any]]] = {"unlike": [], "like": []}
    for one in details["typical"]:
        cards[one["kind"]].append(
            {
                **one,
                "picture": thumbnail(sources[one["key"]]) if one["key"] in sources else None,
                "answer": names[one["predicted"]],
                "truth": names[one["target"]] if one["target"] >= 0 else "",
                "right": one["target"] == one["predicted"],
            }
        )
    return cards
