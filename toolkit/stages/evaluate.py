"""Stage `evaluate`."""

import toolkit.checks.evaluate as check
from toolkit.bundle import Bundle, Report, Store
from toolkit.data import ImageSet


def evaluate(bundle: Bundle, *, store: Store, data: ImageSet, split: str = "test", seed: int = 0) -> Report:
    """Measure one bundle on a data set: quality overall, per slice and per label, with intervals.

    The report `evaluate` is kept beside the bundle and sets no limits; `gate` does.
    """
    report = check.evaluate(bundle, data, split=split, seed=seed)
    store.add_report(report)
    return report
