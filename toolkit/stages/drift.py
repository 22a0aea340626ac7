"""Stage `drift`."""

import logging
from dataclasses import replace
from pathlib import Path

import toolkit.checks.drift as check
from toolkit.bundle import Bundle, Report, Store
from toolkit.checks.drift_verdict import Thresholds
from toolkit.checks.profile import load_profile, make_profile
from toolkit.data import ImageSet
from toolkit.errors import UsageError
from toolkit.release.drift_page import write_drift

log = logging.getLogger(__name__)


def drift(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    thresholds: Thresholds,
    reference: ImageSet | None = None,
    split: str = "test",
    max_samples: int = 2000,
    seed: int = 0,
    run_dir: Path,
) -> Report:
    """Decide whether new data calls for an upgrade: keep, watch, retrain, transfer or investigate, with the evidence.

    The data is compared with the bundle's reference profile: the one made at its release, or one made now from the test
    split of `reference`. The report `drift` is kept beside the bundle and a page with pictures in `run_dir`. Exit code: 0
    keep or watch, 1 for a decision that asks somebody to act, 5 when there are too few images to say.
    """
    if reference is not None:
        profile = make_profile(bundle, reference, store=store, max_samples=max_samples, seed=seed)
    else:
        profile = load_profile(store, bundle)
    if profile is None:
        raise UsageError(
            f"bundle {bundle.short} has no reference profile. Give the data it was good on (data@reference=folder "
            "reference.root=<dir>), or release it with data=...: a release makes one."
        )
    log.info("Drift: %d reference images against %s (%s).", len(profile), data.name, split)
    report = check.drift(bundle, profile, data, thresholds=thresholds, split=split, max_samples=max_samples, seed=seed)
    page = write_drift(report, data, Path(run_dir) / "drift.html")
    report = replace(report, details={**report.details, "files": {"page": str(page)}})
    store.add_report(report)
    return report
