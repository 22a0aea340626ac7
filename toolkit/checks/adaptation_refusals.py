"""What no adapter can map between two contracts, each with its reason: nothing is guessed, and nothing is mapped in part."""

from collections.abc import Iterator, Sequence

from toolkit.backends.adapter import LEAST_OPSET, ONNX_TYPES
from toolkit.backends.graph_files import external_tensors, read_graph
from toolkit.backends.pixel_front import has_front
from toolkit.backends.write import opset_of
from toolkit.bundle import ONNX, Bundle, Manifest, TensorSpec
from toolkit.errors import InputRefused, UsageError

PIXELS = ((0.0, 255.0), None)
SCORES = ("logits", "probabilities")


def require_labels(baseline: Bundle, candidate: Bundle, drop_labels: Sequence[str]) -> None:
    """Raise `InputRefused` unless the candidate knows every label of the baseline, and those it adds are in `drop_labels`.

    Raises `UsageError` for a label in `drop_labels` that the candidate lacks or the baseline has.
    """
    old, new = baseline.manifest.labels, candidate.manifest.labels
    for label in drop_labels:
        if label not in new or label in old:
            where = "the model in service answers it" if label in old else f"bundle {candidate.short} does not answer it"
            raise UsageError(f"service.drop_labels: '{label}' cannot be left out, {where}. Leave out labels that only it adds.")
    missing = [label for label in old if label not in new]
    added = [label for label in new if label not in old and label not in drop_labels]
    if missing:
        raise InputRefused(
            f"bundle {candidate.short} cannot be adapted to {baseline.short}: it does not know {', '.join(missing)}, which the "
            "model in service answers. Fine-tune it on data with all labels of the old one."
        )
    if added:
        raise InputRefused(
            f"bundle {candidate.short} cannot be adapted to {baseline.short}: it also answers {', '.join(added)}, which "
            f"callers do not know. If these may go to the others, say so: service.drop_labels=[{','.join(added)}]"
        )


def refusals(baseline: Bundle, candidate: Bundle) -> tuple[str, ...]:
    """Why the candidate's graph cannot be adapted to the baseline's contract, labels apart; nothing where it can."""
    if not candidate.has(ONNX):
        return ("the successor has no ONNX graph: export it first (toolkit export)",)
    return (*_graph_refusals(baseline, candidate), *_contract_refusals(baseline.manifest, candidate.manifest))


def _graph_refusals(baseline: Bundle, candidate: Bundle) -> Iterator[str]:
    model = read_graph(candidate.file(ONNX))
    if opset_of(model) < LEAST_OPSET:
        yield f"its graph has opset {opset_of(model)}, an adapter needs {LEAST_OPSET}: toolkit migrate_opset"
    if next(external_tensors(model), None) is not None:
        yield "its graph keeps its tensors in another file (it is over 1.5 GB)"
    if baseline.has(ONNX) and has_front(read_graph(baseline.file(ONNX))):
        yield "the graph in service resizes whole images itself: export the successor with contract=pixels"


def _contract_refusals(old: Manifest, new: Manifest) -> Iterator[str]:
    counts = {
        "inputs that callers give": old.contract.inputs,
        "inputs that the successor takes": new.contract.inputs,
        "outputs that callers may read": old.contract.outputs,
    }
    several = {what: specs for what, specs in counts.items() if len(specs) != 1}
    for what, specs in several.items():
        named = ", ".join(f"'{spec.name}' ({spec.meaning})" for spec in specs) or "none"
        yield f"the {what} are {named}; an adapter stands between one input and one output"
    if several or not new.contract.outputs:
        return
    for side, spec in (("callers give", old.contract.inputs[0]), ("the successor takes", new.contract.inputs[0])):
        yield from _input_refusals(side, spec)
    batch, held = old.contract.inputs[0].dims[0], new.contract.inputs[0].dims[0]
    if isinstance(held, int) and held != batch:
        yield f"batch: the successor takes exactly {held} images at a time, callers give {batch}"
    if old.preprocessing.colour != new.preprocessing.colour:
        yield f"channels: callers give {old.preprocessing.colour} images, the successor takes {new.preprocessing.colour}"
    for side, spec in (("callers read", old.contract.outputs[0]), ("the successor answers", new.contract.outputs[0])):
        if spec.meaning not in SCORES or spec.dtype not in ONNX_TYPES or spec.layout not in ("NK", "NKHW"):
            form = f"{spec.meaning} in {spec.dtype} {list(spec.dims)}"
            yield f"output '{spec.name}': {side} {form}, which is not one row of scores an image"


def _input_refusals(side: str, spec: TensorSpec) -> Iterator[str]:
    if spec.dtype not in ONNX_TYPES or spec.layout not in ("NCHW", "NHWC") or len(spec.dims) != 4:
        yield f"input '{spec.name}': {side} {spec.dtype} {spec.layout or '?'} {list(spec.dims)}, which is no batch of images"
    elif spec.meaning == "pixels" and spec.value_range not in PIXELS:
        yield f"input '{spec.name}': {side} pixels in the range {list(spec.value_range or ())}, not 0 to 255"
