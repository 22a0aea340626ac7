"""Stage `monitor`."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from toolkit.bundle import Bundle, Report, Store
from toolkit.bundle.atomic import locked
from toolkit.checks.drift_verdict import Thresholds
from toolkit.checks.monitor_pass import Watch
from toolkit.checks.profile import load_profile
from toolkit.errors import UsageError
from toolkit.release.monitor_page import write_monitor
from toolkit.release.prometheus_text import serve_metrics, write_metrics
from toolkit.training.signals import Interrupted, Signals, Terminated

log = logging.getLogger(__name__)


def monitor(
    bundle: Bundle,
    *,
    store: Store,
    source: str,
    thresholds: Thresholds,
    output: Path,
    follow: bool = False,
    interval_s: float = 60.0,
    port: int | None = None,
) -> Report:
    """Watch a model in service: read what has arrived, test it against the reference profile, alarm when it drifts.

    `source` is a folder, file or URL with logs of predictions (JSONL) or images. State, page and Prometheus metrics are kept in
    `output`; one pass a call, or with `follow` a pass every `interval_s` seconds until SIGTERM. `port` serves the metrics
    over HTTP. However often it looks, an unchanged source raises an alarm with a probability of at most `thresholds.alpha`.
    """
    if interval_s <= 0:
        raise UsageError(f"interval_s is {interval_s:g}; give a number of seconds above 0.")
    profile = load_profile(store, bundle)
    if profile is None:
        raise UsageError(
            f"bundle {bundle.short} has no reference profile: release it with data=..., or run toolkit drift with "
            "data@reference=<the data it was good on>."
        )
    output = Path(output)
    watch = Watch(bundle, profile, source=source, path=output / "state.json", alpha=thresholds.alpha.value)
    page = output / "monitor.html"
    with Signals() as signals, serve_metrics(port) as publish:
        while True:
            with locked(output / "state.lock"):
                report = watch.look(thresholds.min_samples, stop=lambda: signals.received is not None)
                report = replace(report, details={**report.details, "files": {"page": str(page)}})
                write_monitor(report, page)
                publish(write_metrics(report, output / "metrics.prom"))
                store.add_report(report)
            if signals.received is not None:
                log.info("Stopped; what was counted is in %s, and the next call goes on from there.", output / "state.json")
                raise Terminated("The monitor was stopped.") if signals.terminated else Interrupted
            if not follow:
                return report
            _wait(interval_s, signals)


def _wait(seconds: float, signals: Signals) -> None:
    """Sleep, but end within a fifth of a second of a signal."""
    until = time.monotonic() + seconds
    while signals.received is None and (left := until - time.monotonic()) > 0:
        time.sleep(min(0.2, left))
