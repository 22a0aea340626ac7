"""What reports say beside their numbers, in a few words: how a model was matched and proved, what became of its classes."""

from collections.abc import Sequence

from toolkit.bundle import Manifest, Report, Store, TensorSpec

KINDS = {"carried": "classes carried over", "new": "classes new", "dropped": "classes dropped"}
MATCHED = "tensors "  # how the measurements of a match are named
HOW = {
    "exact": "by name",
    "renamed": "by name, renamed",
    "order": "by order and shape",
    "shape": "by shape alone",
    "default": "at their starting value",
}


def findings(store: Store, digest: str) -> list[tuple[str, str]]:
    """Names and values for a reader of the bundle `digest`, from its reports `adopt` and `training`; often none."""
    reports = store.reports(digest)
    return [*_adoption(reports.get("adopt")), *_classes(reports.get("training"))]


def architecture_words(manifest: Manifest) -> str:
    """The architecture's key, and for an ONNX graph its opset and IR version."""
    key, kwargs = manifest.architecture.key, manifest.architecture.kwargs
    if key == "onnx":
        return f"onnx, opset {kwargs.get('opset', '?')}, IR version {kwargs.get('ir_version', '?')}"
    return key


def contract_words(manifest: Manifest) -> list[tuple[str, str]]:
    """What a graph or program that was adopted as it is takes and returns; nothing for the others, which are all alike."""
    if manifest.architecture.key not in ("onnx", "torchscript"):
        return []
    inputs, outputs = (", ".join(map(_tensor, specs)) for specs in (manifest.contract.inputs, manifest.contract.outputs))
    return [("takes", inputs), ("returns", outputs)]


def few(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    return f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _adoption(report: Report | None) -> list[tuple[str, str]]:
    if report is None:
        return []
    counts = {m.name.removeprefix(MATCHED): m.value for m in report.measurements if m.name.startswith(MATCHED) and m.value}
    how = [f"{count:.0f} tensors {HOW.get(kind, kind)}" for kind, count in counts.items()]
    found = [("matched", ", ".join(how))] if how else []
    legacy = report.details.get("legacy")
    if legacy:
        found.append(("proved", _proof(legacy)))
    notes = [note for note in report.details.get("notes", ()) if note]
    return [*found, *([("notes", "; ".join(notes))] if notes else [])]


def _proof(legacy: dict[str, object]) -> str:
    where = f"on {legacy['num_images']} images ({legacy.get('run_as', 'Python code')}: {legacy['code']})"
    if legacy["bit_exact"]:
        return f"logits equal to the legacy model's, bit for bit, {where}"
    if legacy.get("error_floors") is not None:
        return f"logits equal to the legacy model's within {legacy['error_floors']:.2g} times float32's own rounding, {where}"
    return f"logits within {legacy['max_abs_difference_float64']:.2g} of the legacy model's in float64, {where}"


def _tensor(spec: TensorSpec) -> str:
    dims = ", ".join(str(dim) for dim in spec.dims)
    return f"{spec.name}: {spec.dtype} ({dims}), {spec.meaning}"


def _classes(report: Report | None) -> list[tuple[str, str]]:
    changes = report.details.get("labels", {}) if report else {}
    if not changes.get("new") and not changes.get("dropped"):
        return []
    return [(word, few(changes[kind])) for kind, word in KINDS.items() if changes.get(kind)]
