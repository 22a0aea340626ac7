"""From a bundle back to a module: build, cut by the plan, load the weights strictly. No pickle, no pruning library.

Two architectures are a model as it was found, with nothing behind it that could be changed: `onnx`, which has no module at all,
and `torchscript`, whose module runs and no more.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from toolkit.bundle import Bundle
from toolkit.errors import InputRefused, UsageError
from toolkit.models import ensemble, torchscript
from toolkit.models.registry import build
from toolkit.pruning.surgery import apply_plan

MAX_NAMED = 5
GRAPH_ONLY = "onnx"  # the architecture of a bundle that is a graph of unknown origin, with no module behind it
AS_FOUND = {GRAPH_ONLY: "an ONNX graph", torchscript.KEY: "a TorchScript program"}


def restore(bundle: Bundle) -> nn.Module:
    """The module of `bundle`, in evaluation mode on the CPU: normalised float images (N, C, H, W) to logits (N, K).

    Raises `InputRefused`, naming the tensors that are missing, unexpected or of another shape, and what `build` raises.
    """
    key = bundle.manifest.architecture.key
    if key == GRAPH_ONLY:
        require_changeable(bundle, "trained, pruned or exported")
    if key == torchscript.KEY:
        return torchscript.open_scripted(bundle.file(torchscript.FILE), bundle.manifest.contract)
    net = build(bundle.manifest.architecture)
    if bundle.manifest.plan:
        apply_plan(net, bundle.manifest.plan)
    load_strictly(net, bundle.weights(), origin=f"bundle {bundle.short}")
    return net.eval()


def require_changeable(bundle: Bundle, done: str) -> None:
    """Raise `InputRefused` where `bundle` is a graph or program as it was found, which cannot be `done` (pruned, exported)."""
    key = bundle.manifest.architecture.key
    if key not in AS_FOUND:
        return
    raise InputRefused(
        f"bundle {bundle.short} is {AS_FOUND[key]} (architecture {key}): there is no torch module that could be {done}. It can "
        "be evaluated, compared, released, be a gate's baseline and a student's teacher (toolkit finetune bundle=<student> "
        f"teacher={bundle.short}); to change the model, adopt the checkpoint it was made from, with its architecture, and keep "
        "this bundle as baseline."
    )


def require_single(bundle: Bundle, done: str) -> None:
    """Raise as `require_changeable`, and `UsageError` where `bundle` is an ensemble, whose members are `done` one by one."""
    require_changeable(bundle, done)
    if bundle.manifest.architecture.key == ensemble.KEY:
        members = ", ".join(digest[:12] for digest in bundle.manifest.lineage.parents)
        raise UsageError(
            f"bundle {bundle.short} is an ensemble, which is not {done} as a whole. Its members ({members}) can be, "
            f"or distil it: toolkit finetune bundle=<student> teacher={bundle.short}"
        )


def load_strictly(net: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Load `weights` into `net`, each tensor of its state and no other. `origin` names them in the error (`InputRefused`)."""
    state = net.state_dict()
    missing = [name for name in state if name not in weights]
    unexpected = [name for name in weights if name not in state]
    reshaped = [
        f"{name} {list(weights[name].shape)}, the model has {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        raise InputRefused(
            f"{origin} does not fit its architecture: "
            + "; ".join(
                f"{len(names)} {kind} ({named(names)})"
                for kind, names in (("missing", missing), ("unexpected", unexpected), ("reshaped", reshaped))
                if names
            )
            + ". Its manifest or weights are damaged, or another version of the model's library wrote it."
        )
    state.update(weights)  # with the versions of the modules as built: without them some convert the tensors as old ones
    net.load_state_dict(state, strict=True)


def named(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f", and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
