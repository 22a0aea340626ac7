"""Stage `interpolate`."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from toolkit.bundle import Bundle, Report, Store, environment, lineage, recipe_yaml
from toolkit.checks.evaluate import evaluate
from toolkit.data import ImageSet, Normalise, load_pixels
from toolkit.errors import UsageError
from toolkit.models import require_single, restore
from toolkit.pruning import reestimate_batchnorm

BATCH_SIZE, MAX_IMAGES = 64, 640

log = logging.getLogger(__name__)


def interpolate(bundle: Bundle, *, store: Store, baseline: Bundle, data: ImageSet, share: float = 0.5) -> Bundle:
    """Make the model that lies between a bundle and the one it was trained from: `share` of the new weights.

    Where both have the same architecture, the weights between them often keep most of what the new one gained and lose fewer
    of the old one's right answers (WiSE-FT, Wortsman et al., CVPR 2022). BatchNorm is re-estimated on training images, because
    averaged statistics describe neither net. The report `evaluate` measures the result on the validation split.
    """
    for side in (bundle, baseline):
        require_single(side, "interpolated")
    if not 0 <= share <= 1:
        raise UsageError(f"share is {share}; it is how much of the new weights is taken, between 0 (the old) and 1 (the new).")
    _require_alike(bundle, baseline)
    recipe = {"share": share}
    made = lineage("interpolate", parents=(bundle.digest, baseline.digest), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None:
        log.info("Found bundle %s, made before from the same two.", found.short)
        return found
    net, old = restore(bundle), restore(baseline).state_dict()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(old[name], 1 - share)
    reestimate_batchnorm(net, _batches(bundle, data))
    child = store.add(replace(bundle.manifest, lineage=made, files={}), weights=net.state_dict())
    report = evaluate(child, data, split="val")
    store.add_report(Report("evaluate", (child.digest,), "pass", report.measurements, report.details, environment()))
    log.info("Bundle %s: balanced accuracy %.4f on the validation split.", child.short, report.value("balanced_accuracy"))
    return child


def _require_alike(bundle: Bundle, baseline: Bundle) -> None:
    """Raise `UsageError`, naming what differs, unless weights of the two can be averaged tensor by tensor."""
    new, old = bundle.manifest, baseline.manifest
    parts = ("architecture", "plan", "labels", "preprocessing")
    apart = [part for part in parts if getattr(new, part) != getattr(old, part)]
    if apart:
        raise UsageError(
            f"bundles {bundle.short} and {baseline.short} differ in {', '.join(apart)}: only models of one kind have weights "
            "between them. Fine-tune from the baseline, or distil it (finetune teacher=... options.distillation.focus=5)."
        )


def _batches(bundle: Bundle, data: ImageSet) -> Iterator[Tensor]:
    """Up to 640 training images, evenly chosen, as the net takes them."""
    split = data.split("train")
    step = max(1, len(split) // MAX_IMAGES)
    chosen = replace(split, samples=split.samples[::step][:MAX_IMAGES])
    pixels, normalise = load_pixels(chosen, bundle.manifest.preprocessing), Normalise(bundle.manifest.preprocessing)
    return (normalise(images_NCHW) for images_NCHW in pixels.images_NCHW.split(BATCH_SIZE))
