"""Stage `export`.

Parity is the postcondition: the graph is written beside the store, compared with the module it came from on real images, and
becomes a bundle only when it passed. A failed export leaves a report, beside it the part of the graph that shows the fault,
and nothing else.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from toolkit.backends import EagerRunner, ExportFacts, write_onnx
from toolkit.backends.graph_contract import require_contract
from toolkit.bundle import GOLDEN, ONNX, Bundle, Lineage, Measurement, Report, Store, environment, lineage
from toolkit.checks.parity import ParityLimits, parity, with_edges
from toolkit.checks.parity_members import with_members
from toolkit.checks.parity_repro import repro_files
from toolkit.checks.pixel_export import Fronted, put_in_front
from toolkit.checks.variants import Variant, Variants, ordered, variant_maker
from toolkit.data import ImageSet, load_pixels
from toolkit.errors import CheckFailed, InputRefused, Undecided, UsageError, unknown_name
from toolkit.models import Deployed, pixel_contract, require_changeable, restore, uint8_contract

MAX_PARITY_IMAGES = 60  # with the 4 edge inputs two full batches of 32
MIB = 2**20
CONTRACTS = {"tensor": pixel_contract, "pixels": uint8_contract}

DECIDING = ("torch", "onnx", "onnxruntime")  # another version of these is another graph or another parity

log = logging.getLogger(__name__)


def export(
    bundle: Bundle,
    *,
    store: Store,
    data: ImageSet,
    precisions: Sequence[str] = ("fp32",),
    contract: Literal["tensor", "pixels"] = "tensor",
    opset: int = 20,
    limits: ParityLimits | None = None,
    variants: Variants | None = None,
    num_golden: int = 8,
) -> Bundle:
    """Write a bundle as ONNX and prove, on real images of the data, that the graph is the model.

    The new bundle holds the weights, `model.onnx` (float32 pixels in, logits out, free batch) and `golden.safetensors`
    (`num_golden` images as `images`, and the `logits` to expect). With `contract=pixels` the graph takes uint8 images
    (N, H, W, C) of any size and resizes and crops them itself; the report `preprocessing` says how far its pixels are from
    those of training, and too far is no export. `precisions` adds `model.fp16.onnx` and `model.int8.onnx`
    with the same inputs and outputs; one that does not hold what `variants` demands is left out. Its reports are `parity`,
    `parity.fp16` and `parity.int8` for those asked for, and `export`. The same bundle, data and settings are not exported
    twice. A float32 graph that does not pass parity becomes no bundle; the error names the first wrong module, the report, and
    the folder that reproduces the fault.
    """
    require_changeable(bundle, "exported")
    lower, limits, variants = ordered(precisions)[1:], limits or ParityLimits(), variants or Variants()
    _require_possible(contract, num_golden)
    recipe: dict[str, Any] = {"opset": opset, "limits": limits, "num_golden": num_golden}
    recipe |= {"contract": contract} if contract != "tensor" else {}
    recipe |= {"precisions": ["fp32", *lower], "variants": variants} if lower else {}
    made = lineage("export", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = _exported_before(store, made, [*lower, contract])
    if found is not None:
        return found
    manifest = bundle.manifest
    deployed = Deployed(restore(bundle), manifest.preprocessing)
    images_NCHW = _real_images(data, bundle, at_least=num_golden)
    maker = variant_maker(deployed, images_NCHW, data, manifest, variants=variants, limits=limits) if lower else None
    with tempfile.TemporaryDirectory(prefix="toolkit-export-") as folder:
        path = Path(folder) / ONNX
        facts = _write(bundle, deployed, path, opset=opset)
        report = parity(deployed, path, images_NCHW, subject=bundle.digest, limits=limits)
        report = with_members(report, deployed, path, images_NCHW, limits)
        _require_parity(report, store, lambda fault: _repro(deployed, path, images_NCHW, fault, limits))
        lowered = maker.make(path, lower) if maker else []
        graphs = {"fp32": path} | {variant.precision: variant.path for variant in lowered if variant.shipped}
        promised = CONTRACTS[contract](manifest.preprocessing, len(manifest.labels))
        fronted = _fronted(graphs.values(), deployed, bundle, data, limits, store) if contract == "pixels" else None
        for graph in graphs.values():
            require_contract(graph, promised, manifest.labels)
        golden = fronted.golden(num_golden) if fronted else _golden(deployed, images_NCHW, num_golden)
        save_file(golden, Path(folder) / GOLDEN)
        child = replace(manifest, contract=promised, lineage=made)
        files = {file.name: file for file in sorted(Path(folder).iterdir())}
        exported = store.add(child, weights=bundle.weights(), files=files)
    for each in (report, *(variant.report for variant in lowered), *([fronted.report] if fronted else [])):
        store.add_report(replace(each, subjects=(exported.digest, bundle.digest)))
    store.add_report(_export_report(exported, facts, lowered))
    _tell(exported, report, facts, graphs)
    return exported


def _tell(exported: Bundle, report: Report, facts: ExportFacts, graphs: Mapping[str, Path]) -> None:
    if report.details["warning"]:
        log.warning("Parity of bundle %s: %s", exported.short, report.details["warning"])
    error = report.value("error_ratio.max")
    log.info("Bundle %s: ONNX opset %d in %s, error %.2f floors.", exported.short, facts.opset, ", ".join(graphs), error)


def _require_possible(contract: str, num_golden: int) -> None:
    if contract not in CONTRACTS:
        raise unknown_name("contract", contract, CONTRACTS)
    if num_golden < 1:
        raise UsageError(f"num_golden is {num_golden}; the serving side needs at least 1 golden image.")


def _fronted(
    graphs: Iterable[Path], deployed: Deployed, bundle: Bundle, data: ImageSet, limits: ParityLimits, store: Store
) -> Fronted:
    """The graphs with their preprocessing in front; raises `CheckFailed` where it is not that of training."""
    spec = bundle.manifest.preprocessing
    found = put_in_front(graphs, deployed, data, preprocessing=spec, subject=bundle.digest, limits=limits.pixels)
    if found.report.verdict == "pass":
        return found
    path = store.add_report(replace(found.report, check="preprocessing.failed"))
    raise CheckFailed(
        f"Inside the graph, {spec.resize} with {spec.interpolation} is not what training did: pixels differ by "
        f"{found.report.value('pixel_difference.mean'):.2f} grey levels on average on the worst image (limit "
        f"{limits.pixels.max_mean_levels:g}), and {found.report.value('decisions_changed'):.0f} answers change. No bundle was "
        f"made; the report is {path}. Export with contract=tensor, or allow it with limits.pixels.*."
    )


def _exported_before(store: Store, made: Lineage, asked: list[str]) -> Bundle | None:
    """The bundle that an equal export made, if its reports are there too."""
    found = store.find(
        stage=made.stage,
        parents=made.parents,
        recipe=made.recipe,
        data_fingerprint=made.data_fingerprint,
        packages=DECIDING,
    )
    wanted = {"parity", *(f"parity.{name}" for name in asked if name not in CONTRACTS)}
    wanted |= {"preprocessing"} if "pixels" in asked else set()
    if found is None or not wanted <= set(store.reports(found.digest)):
        return None
    log.info("Found bundle %s, exported before from the same bundle with the same settings.", found.short)
    return found


def _write(bundle: Bundle, deployed: Deployed, path: Path, *, opset: int) -> ExportFacts:
    return write_onnx(
        deployed,
        path,
        preprocessing=bundle.manifest.preprocessing,
        labels=bundle.manifest.labels,
        opset=opset,
        metadata={"parent": bundle.digest, "precision": "fp32"},
    )


def _real_images(data: ImageSet, bundle: Bundle, *, at_least: int) -> np.ndarray:
    """Up to 60 images, evenly spaced over the test split (or, where there is none, val), as float32 pixels images_NCHW."""
    split = data.split("test") if len(data.split("test")) else data.split("val")
    if len(split) < at_least:
        raise InputRefused(
            f"data '{data.name}' has {len(split)} test images; {at_least} are needed. Give more data or a smaller num_golden."
        )
    chosen = np.unique(np.linspace(0, len(split) - 1, max(MAX_PARITY_IMAGES, at_least)).round().astype(int))
    pixels = load_pixels(replace(split, samples=tuple(split.samples[i] for i in chosen)), bundle.manifest.preprocessing)
    return pixels.images_NCHW.numpy().astype(np.float32)


def _require_parity(report: Report, store: Store, repro: Callable[[Mapping[str, Any]], Mapping[str, bytes]]) -> None:
    if report.verdict == "pass":
        return
    failed = replace(report, check="parity.failed")
    path = store.add_report(failed)
    broken = [m for m in report.measurements if m.limit is not None and m.passed is not True]
    reasons = "; ".join(f"{m.name} is {m.value:.4g}, limit {m.limit} ({m.limit.reason})" for m in broken if m.limit)
    if report.verdict == "undecided":
        raise Undecided(
            f"Parity cannot be decided: {reasons}. In float32 the model itself is {report.value('float32_share'):.1%} from "
            f"float64, so any error could be rounding: its weights or BatchNorm statistics are ill-conditioned. No bundle was "
            f"made; the report is {path}."
        )
    fault = report.details.get("fault", {})
    sentence = fault.get("sentence", "The graph does not run as asked: " + "; ".join(report.details["refusals"][:1]))
    files = repro(fault) if fault else {}
    if files:
        place = store.attach(failed, "repro", files)
        path = store.add_report(replace(failed, details={**failed.details, "repro": place.name}))
        sentence += f". To see it alone: python {place / 'repro.py'}"
    raise CheckFailed(f"The exported graph is not the model: {reasons}. {sentence}. No bundle was made; the report is {path}.")


def _repro(
    deployed: Deployed, path: Path, images_NCHW: np.ndarray, fault: Mapping[str, Any], limits: ParityLimits
) -> dict[str, bytes]:
    looked_at_NCHW = with_edges(images_NCHW)[fault["images"]]
    return repro_files(deployed, path, looked_at_NCHW, fault, k=limits.k_fail, num_runs=limits.num_runs)


def _golden(deployed: Deployed, images_NCHW: np.ndarray, num: int) -> dict[str, torch.Tensor]:
    """Inputs and the float64 answers rounded to float32, for the serving side to repeat with onnxruntime and numpy alone."""
    chosen_NCHW = images_NCHW[np.linspace(0, len(images_NCHW) - 1, num).round().astype(int)]
    logits_NK = EagerRunner(deployed, dtype="float64", threads=1)(chosen_NCHW).astype(np.float32)
    return {"images": torch.from_numpy(chosen_NCHW), "logits": torch.from_numpy(logits_NK)}


def _export_report(exported: Bundle, facts: ExportFacts, lowered: list[Variant]) -> Report:
    """What was written and how long each phase took."""
    measurements = (
        Measurement("opset", facts.opset),
        Measurement("num_nodes", facts.num_nodes),
        Measurement("size", facts.num_bytes / MIB, unit="MiB"),
        *(Measurement(f"{phase}_time", seconds, unit="s") for phase, seconds in facts.seconds.items()),
        *(Measurement(f"{variant.precision}_time", variant.seconds, unit="s") for variant in lowered),
    )
    details = {
        "method": facts.method,
        "ir_version": facts.ir_version,
        "external_data": facts.external_data,
        "precisions": {"fp32": "shipped"} | {v.precision: "shipped" if v.shipped else v.reason for v in lowered},
    }
    return Report("export", (exported.digest,), "pass", measurements, details, environment())
