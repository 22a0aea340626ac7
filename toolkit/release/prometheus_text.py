"""The monitor's figures for Prometheus: as a file for the node exporter's textfile collector, and over HTTP.

The text format is a few lines and written here; the HTTP endpoint is the official client's, an extra.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle import Report
from toolkit.bundle.atomic import write_atomic
from toolkit.errors import EnvironmentProblem, UsageError, missing_extra

PREFIX = "model_monitor"


@dataclass(frozen=True)
class Metric:
    """One metric with its samples (labels, value). Counters end in `_total`."""

    name: str
    help: str
    kind: str
    samples: Sequence[tuple[dict[str, str], float]]


def metrics(report: Report) -> list[Metric]:
    """The metrics of a report `monitor`."""
    own = {"bundle": report.subjects[0][:12]}
    details = report.details
    evidence = [
        (own | {"test": m.name.partition(".")[2]}, m.value or 0.0)
        for m in report.measurements
        if m.name.startswith("evidence.")
    ]
    alarms = [(labels, float(labels["test"] in details["alarms"])) for labels, _ in evidence]
    answers = details["counts"].get("answers", ())
    found = [
        Metric("samples_total", "Answers counted.", "counter", [(own, report.value("samples.seen"))]),
        Metric(
            "refused_total", "Lines and images that could not be used.", "counter", [(own, report.value("samples.refused"))]
        ),
        Metric("batches_total", "Batches counted.", "counter", [(own, float(details["num_batches"]))]),
        Metric("evidence_log10", "Evidence of change, log10 of the e-value.", "gauge", evidence),
        Metric("alarm_at_log10", "The evidence that alarms.", "gauge", [(own, details["alarm_at"])]),
        Metric("alarm", "1 once a test has alarmed.", "gauge", alarms),
        Metric(
            "answers_total",
            "Answers by label.",
            "counter",
            [(own | {"label": label}, float(count)) for label, count in zip(details["labels"], answers, strict=False)],
        ),
    ]
    if "errors" in details["counts"]:
        wrong, known = details["counts"]["errors"]
        found.append(Metric("wrong_total", "Wrong answers, of those with a known truth.", "counter", [(own, float(wrong))]))
        found.append(Metric("judged_total", "Answers with a known truth.", "counter", [(own, float(known))]))
    return found


def exposition(found: Sequence[Metric]) -> str:
    """The metrics in Prometheus's text format, version 0.0.4."""
    lines = []
    for metric in found:
        name = f"{PREFIX}_{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        for labels, value in metric.samples:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{inside}}} {value!r}")
    return "\n".join(lines) + "\n"


def write_metrics(report: Report, path: Path) -> list[Metric]:
    """Write the metrics of a report `monitor` to `path` (a collector never sees half a file); returns them."""
    found = metrics(report)
    write_atomic(path, exposition(found).encode())
    return found


@contextlib.contextmanager
def serve_metrics(port: int | None) -> Iterator[Callable[[Sequence[Metric]], None]]:
    """Serve what the yielded function was last given at `http://<host>:<port>/metrics`; without a port, nothing.

    Raises `EnvironmentProblem` without the extra `monitor` or for a port that is taken.
    """
    if port is None:
        yield lambda _metrics: None
        return
    if not 0 < port < 65536:
        raise UsageError(f"port is {port}; give one from 1 to 65535, or null for none.")
    try:
        import prometheus_client
    except ImportError as error:
        raise missing_extra("prometheus_client", "monitor", "Serving metrics over HTTP (port=...)") from error
    collector = _Collector()
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)  # pyright: ignore[reportArgumentType]
    try:
        server, thread = prometheus_client.start_http_server(port, registry=registry)
    except OSError as error:
        raise EnvironmentProblem(
            f"Cannot serve metrics on port {port}: {error.strerror or error}. Choose another port=..."
        ) from error
    try:
        yield collector.publish
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Hands the latest metrics to the client's HTTP server."""

    def __init__(self) -> None:
        self.latest: Sequence[Metric] = ()

    def publish(self, found: Sequence[Metric]) -> None:
        self.latest = found

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in self.latest:
            keys = list(metric.samples[0][0]) if metric.samples else []
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(f"{PREFIX}_{metric.name.removesuffix('_total')}", metric.help, labels=keys)
            for labels, value in metric.samples:
                family.add_metric(list(labels.values()), value)
            yield family


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
