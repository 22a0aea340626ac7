"""Stage `gate`."""

import logging

from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.operating_point import Service
from toolkit.checks.regression import regression
from toolkit.checks.regression_limits import GateLimits
from toolkit.data import ImageSet

log = logging.getLogger(__name__)


def gate(
    bundle: Bundle,
    *,
    store: Store,
    baseline: Bundle,
    data: ImageSet,
    limits: GateLimits,
    split: str = "test",
    seed: int = 0,
    latency_rounds: int = 100,
    service: Service | None = None,
) -> Report:
    """Decide whether a bundle may replace the one in service: quality, flips, contract, parity, cost.

    Both answer the same images, each through its own preprocessing. Where the service acts on a threshold
    (service.label=<class> service.threshold=<probability>), the candidate gets its own, chosen on the validation split so that
    service.keep (recall, precision or alert_rate) stays. No answer may get worse on the images that the file service.pinned
    lists by key. The report `gate`, with every limit and its reason, is
    kept beside the candidate; the exit code is its verdict (0 pass, 1 fail, 5 undecided).
    """
    log.info("Gate: candidate %s against baseline %s on %s (%s).", bundle.short, baseline.short, data.name, split)
    report = regression(
        bundle,
        baseline,
        data,
        limits=limits,
        parity=store.reports(bundle.digest).get("parity"),
        split=split,
        seed=seed,
        latency_rounds=latency_rounds,
        service=service,
    )
    path = store.add_report(report)
    log.info("Gate report: %s", path)
    return report
