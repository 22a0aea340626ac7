"""Stage `calibrate`."""

import logging
from dataclasses import replace

from toolkit.backends import open_runner
from toolkit.bundle import Bundle, Report, Store, environment, lineage, recipe_yaml
from toolkit.checks.predict import predict
from toolkit.checks.temperature import MIN_SAMPLES
from toolkit.checks.temperature import calibrate as judge
from toolkit.data import ImageSet, load_pixels
from toolkit.errors import InputRefused
from toolkit.models import require_single, restore, scale_head

log = logging.getLogger(__name__)


def calibrate(bundle: Bundle, *, store: Store, data: ImageSet, split: str = "val", seed: int = 0) -> Bundle:
    """Make the confidences of a bundle honest: one temperature, fitted on the validation split, written into its head.

    The head's weights and bias are divided by the temperature, so every runtime serves calibrated probabilities and nothing
    else changes: same labels, same ranking, same cost. A temperature that does not help on images it was not fitted to leaves
    the bundle as it is. The report `calibration` holds the figures. Calibrate before exporting: a graph stays as it is.
    """
    require_single(bundle, "calibrated")
    if tuple(data.labels) != tuple(bundle.manifest.labels):
        raise InputRefused(
            f"bundle {bundle.short} answers {', '.join(bundle.manifest.labels)} and the data has {', '.join(data.labels)}, in "
            "this order. Calibrate it on data with its own labels."
        )
    recipe = {"split": split, "seed": seed}
    made = lineage("calibrate", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None:
        log.info("Found bundle %s, calibrated before on the same images.", found.short)
        return found
    pixels = load_pixels(data.split(split), bundle.manifest.preprocessing)
    result = judge(predict(open_runner(bundle, kind="eager"), pixels), pixels.targets_N.numpy(), seed=seed)
    child = bundle
    if result.helps:
        net = restore(bundle)
        scale_head(net, 1 / result.temperature)
        child = store.add(replace(bundle.manifest, lineage=made, files={}), weights=net.state_dict())
        log.info("Bundle %s: logits divided by %.3f.", child.short, result.temperature)
    else:
        why = "shows no gain on images it was not fitted to" if result.measurements else f"needs {MIN_SAMPLES} images or more"
        log.info("Bundle %s stays as it is: a temperature %s.", bundle.short, why)
    if child is bundle and "calibration" in store.reports(bundle.digest):
        return bundle  # how it was calibrated is worth more than that it needs no more
    details = {"applied": result.helps, "split": split}
    verdict = "pass" if result.measurements else "undecided"
    store.add_report(Report("calibration", (child.digest,), verdict, result.measurements, details, environment()))
    return child
