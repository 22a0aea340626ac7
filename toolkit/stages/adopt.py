"""Stage `adopt`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.bundle import (
    Architecture,
    Bundle,
    Manifest,
    Preprocessing,
    Report,
    Store,
    environment,
    lineage,
    recipe_yaml,
    verdict_of,
)
from toolkit.errors import InputRefused, UsageError
from toolkit.migration import (
    Adoption,
    AsFound,
    checked_width,
    from_checkpoint,
    from_graph,
    from_program,
    random_weights,
)
from toolkit.models import pixel_contract
from toolkit.models.restoring import AS_FOUND, GRAPH_ONLY


def adopt(
    architecture: str,
    *,
    store: Store,
    labels: Sequence[str] = (),
    checkpoint: Path | str | None = None,
    preprocessing: Mapping[str, Any] | Preprocessing | None = None,
    kwargs: Mapping[str, Any] | None = None,
    legacy: str | None = None,
    seed: int = 0,
    alias: str | None = None,
) -> Bundle:
    """Bring a model into the store, from a checkpoint of any age or with random weights.

    architecture   torchvision/<name>, timm/<name>, a key that a plugin registered; onnx or torchscript for a graph or program
                   that is its own model
    checkpoint     a .pt, .pth, .bin, .ckpt or .safetensors file; package:<name> for the one in an installed package;
                   torchvision:<entry> or timm:pretrained to download published weights; nothing for random weights drawn
                   from seed. <file>#<entry> takes one of several sets of weights in a file
    labels         class names in the order of the logits; left empty, the classes are numbered
    preprocessing  overrides of the architecture's own, e.g. {size_px: [112,112]}
    kwargs         arguments of the architecture's builder, e.g. {drop_rate: 0.2}; of a graph or program what it does not say
                   of itself: {input: pixels | normalised, output: logits | probabilities, layout: NCHW | NHWC}
    legacy         the model in its old form, to give the same logits on photographs: <module>:<callable> builds it in its old
                   code, or a TorchScript or .onnx file of it
    alias          a name for the bundle, e.g. production

    The report `adopt` says how each tensor was matched; a checkpoint that does not fit is refused with what is missing,
    unexpected, reshaped or ambiguous. So is a pickled model, because reading it would run its code. If you trust it, save
    its weights in the environment that wrote it:

        saved = torch.load("model.pth", weights_only=False)
        torch.save(saved.state_dict(), "weights.pt")  # or saved["state_dict"] of a training script's checkpoint
    """
    spec = _architecture(architecture, kwargs or {}, labels, checkpoint)
    if architecture in AS_FOUND:
        return _adopt_as_found(
            spec, checkpoint, store=store, labels=labels, preprocessing=preprocessing, legacy=legacy, alias=alias
        )
    if checkpoint is not None:
        made = from_checkpoint(spec, checkpoint, preprocessing=preprocessing, legacy=legacy)
    elif legacy is None:
        made = random_weights(spec, preprocessing=preprocessing, seed=seed)
    else:
        raise UsageError("legacy compares a checkpoint in its old and its new code: give checkpoint as well.")
    names = _names(labels, checked_width(made))
    contract = pixel_contract(made.preprocessing, len(names))
    recipe = {"architecture": made.architecture, "labels": list(labels), "preprocessing": made.preprocessing, **made.recipe}
    known = store.find(stage="adopt", parents=(), recipe=recipe_yaml(recipe), data_fingerprint=None)
    manifest = Manifest(made.architecture, names, made.preprocessing, contract, lineage("adopt", recipe=recipe))
    bundle = known or store.add(manifest, weights=made.net.state_dict())
    return _reported(bundle, made, store=store, alias=alias)


def _adopt_as_found(
    spec: Architecture,
    checkpoint: Path | str | None,
    *,
    store: Store,
    labels: Sequence[str],
    preprocessing: Mapping[str, Any] | Preprocessing | None,
    legacy: str | None,
    alias: str | None,
) -> Bundle:
    """An ONNX graph or a TorchScript program, as it is."""
    if checkpoint is None or legacy is not None:
        raise UsageError(
            f"architecture {spec.key} needs checkpoint=<the file>, and takes no legacy: {AS_FOUND[spec.key]} is its own code."
        )
    read = from_graph if spec.key == GRAPH_ONLY else from_program
    made = read(checkpoint, preprocessing=preprocessing, kwargs=spec.kwargs)
    names = _names(labels, made.num_labels)
    recipe = {"architecture": made.architecture, "labels": list(labels), "preprocessing": made.preprocessing, **made.recipe}
    known = store.find(stage="adopt", parents=(), recipe=recipe_yaml(recipe), data_fingerprint=None)
    manifest = Manifest(made.architecture, names, made.preprocessing, made.contract, lineage("adopt", recipe=recipe))
    return _reported(known or store.add(manifest, files=made.files), made, store=store, alias=alias)


def _reported(bundle: Bundle, made: Adoption | AsFound, *, store: Store, alias: str | None) -> Bundle:
    verdict = verdict_of(made.measurements)
    store.add_report(Report("adopt", (bundle.digest,), verdict, made.measurements, made.details, environment()))
    if alias is not None:
        store.aliases.promote(alias, bundle.digest, note="adopted")
    return bundle


def _architecture(key: str, kwargs: Mapping[str, Any], labels: Sequence[str], checkpoint: Path | str | None) -> Architecture:
    if len(set(labels)) != len(labels):
        raise UsageError(f"labels repeat: {', '.join(sorted({n for n in labels if list(labels).count(n) > 1}))}")
    if labels and kwargs.get("num_classes", len(labels)) != len(labels):
        raise UsageError(f"{len(labels)} labels were given and kwargs.num_classes is {kwargs['num_classes']}: leave it out.")
    if labels and checkpoint is None and key not in AS_FOUND:
        return Architecture(key, {**kwargs, "num_classes": len(labels)})
    return Architecture(key, dict(kwargs))


def _names(labels: Sequence[str], width: int) -> tuple[str, ...]:
    if labels and len(labels) != width:
        raise InputRefused(
            f"The checkpoint has {width} classes and {len(labels)} labels were given. Leave labels empty to keep its classes; "
            "fine-tuning gives the model a head for the classes of its data."
        )
    return tuple(str(label) for label in labels) or tuple(str(index) for index in range(width))
