"""Stage `gate`."""

import logging
from dataclasses import replace

from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.adaptation import adapt_contract
from toolkit.checks.operating_point import Service
from toolkit.checks.regression import regression
from toolkit.checks.regression_limits import GateLimits
from toolkit.checks.training_overlap import training_overlap
from toolkit.data import ImageSet

BATCH = 32  # images a call where throughput and memory are measured

log = logging.getLogger(__name__)


def gate(
    bundle: Bundle,
    *,
    store: Store,
    baseline: Bundle,
    data: ImageSet,
    limits: GateLimits,
    split: str = "test",
    latency_rounds: int = 100,
    service: Service | None = None,
    adapt: bool = False,
) -> Report:
    """Decide whether a bundle may replace the one in service: quality, flips, contract, parity, cost.

    Both answer the same images, each through its own preprocessing. Where the service acts on a threshold
    (service.label=<class> service.threshold=<probability>), the candidate gets its own, chosen on the validation split so that
    service.keep (recall, precision or alert_rate) stays. No answer may get worse on the images that the file service.pinned
    lists by key. With `adapt`, a candidate whose contract would break callers gets an adapter around its graph, becomes a
    bundle of its own that is drop-in, and that one is judged (and released). The report `gate`, with every limit and its
    reason, is kept beside the judged bundle; the exit code is its verdict (0 pass, 1 fail, 5 undecided).
    """
    service = service or Service()
    adaptation = None
    if adapt:
        adaptation = adapt_contract(bundle, baseline, data, store=store, drop_labels=service.drop_labels)
        bundle = adaptation.bundle
    log.info("Gate: candidate %s against baseline %s on %s (%s).", bundle.short, baseline.short, data.name, split)
    report = regression(
        bundle,
        baseline,
        data,
        limits=limits,
        parity=store.reports(bundle.digest).get("parity"),
        split=split,
        latency_rounds=latency_rounds,
        service=service,
        batch=BATCH,
        overlap=training_overlap(store, bundle, data, split=split),
    )
    if adaptation is not None:
        report = replace(report, details={**report.details, "adaptation": adaptation.details})
    path = store.add_report(report)
    log.info("Gate report: %s", path)
    return report
