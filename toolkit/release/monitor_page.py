"""What the monitor has seen, as one page that is written anew after every look."""

from pathlib import Path
from typing import Any

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.release import quantities
from toolkit.release.drift_figures import evidence_figure, shares_figure
from toolkit.release.templates import render_template

MEANINGS = {
    "answers": "answers",
    "confidence": "confidence",
    "distance": "distance of images",
    "labels": "true labels",
    "errors": "wrong answers",
    "discordant": "against the former model",
}
MAX_LABELS = 12


def write_monitor(report: Report, path: Path) -> None:
    """Write the page of a report `monitor` to `path`."""
    write_atomic(path, render_monitor(report).encode())


def render_monitor(report: Report) -> str:
    """The page of a report `monitor`."""
    details = report.details
    points = details["points"]
    context = {
        "digest": report.subjects[0],
        "details": details,
        "verdict": report.verdict,
        "rows": [_row(m.name.partition(".")[2], report) for m in report.measurements if m.name.startswith("evidence.")],
        "shares": _shares(report),
        "evidence": evidence_figure(points, alarm_at=details["alarm_at"], titles=MEANINGS) if points else None,
        "answers": shares_figure(points, labels=details["labels"], reference=details["reference"]["answers"])
        if "answers" in details["counts"]
        else None,
        "seen": _number("samples.seen", report),
        "refused": _number("samples.refused", report),
        "environment": report.environment,
    }
    return render_template("monitor.html.j2", **context)


def _number(name: str, report: Report) -> str:
    found = next(m for m in report.measurements if m.name == name)
    return quantities.show(found.value or 0.0, found, bare=True)


def _row(name: str, report: Report) -> dict[str, Any]:
    found = {m.name: m for m in report.measurements}[f"evidence.{name}"]
    alarm = report.details["alarms"].get(name)
    value = found.value or 0.0
    return {
        "title": MEANINGS[name],
        "value": f"{value:.2f}".replace("-", "−"),
        "n": f"{found.n:,}",
        "alarm": f"{alarm['time_utc']}, after {alarm['num_samples']:,} samples" if alarm else "",
    }


def _shares(report: Report) -> list[dict[str, str]]:
    """Shares of each label among answers and true labels, in the reference and in service."""
    details, found = report.details, []
    for kind, word in (("answers", "answered"), ("labels", "true")):
        if kind not in details["counts"] or kind not in details["reference"]:
            continue
        now, before = details["counts"][kind], details["reference"][kind]
        for k in sorted(range(len(now)), key=lambda k: -now[k])[:MAX_LABELS]:
            pair = [f"{100 * counts[k] / max(1, sum(counts)):.1f}%" for counts in (before, now)]
            found.append({"label": details["labels"][k], "kind": word, "before": pair[0], "after": pair[1]})
    return found
