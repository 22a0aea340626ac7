"""A bundle becomes the same module again, or says why not."""

import pytest
import torch
from torch import Tensor, nn

from toolkit.bundle import Architecture, Bundle, Manifest, Plan, Preprocessing, Store, lineage
from toolkit.errors import InputRefused
from toolkit.models import Deployed, build, pixel_contract, restore
from toolkit.models.restoring import load_strictly

PREPROCESSING = Preprocessing(size_px=(32, 32))
ARCHITECTURE = Architecture("torchvision/resnet18", {"num_classes": 3})


def stored(store: Store, weights: dict[str, Tensor], plan: Plan | None = None) -> Bundle:
    contract = pixel_contract(PREPROCESSING, 3)
    manifest = Manifest(ARCHITECTURE, ("a", "b", "c"), PREPROCESSING, contract, lineage("adopt"), plan or Plan())
    return store.add(manifest, weights=weights)


def test_a_restored_module_gives_the_same_bits(store: Store) -> None:
    net = build(ARCHITECTURE).eval()
    images_NCHW = torch.rand(2, 3, 32, 32) * 255
    restored = restore(stored(store, net.state_dict()))
    assert not restored.training
    expected_NK = Deployed(net, PREPROCESSING)(images_NCHW)
    assert torch.equal(Deployed(restored, PREPROCESSING)(images_NCHW), expected_NK)


def test_the_plan_is_applied_before_the_weights_load(store: Store) -> None:
    net = build(ARCHITECTURE).eval()
    plan = Plan(kept={"fc.weight": {"0": (0, 2)}, "fc.bias": {"0": (0, 2)}}, attributes={"fc": {"out_features": 2}})
    weights = net.state_dict()
    weights |= {"fc.weight": weights["fc.weight"][[0, 2]], "fc.bias": weights["fc.bias"][[0, 2]]}
    images_NCHW = torch.rand(2, 3, 32, 32)
    assert torch.equal(restore(stored(store, weights, plan))(images_NCHW), net(images_NCHW)[:, [0, 2]])


def test_weights_that_do_not_fit_are_named(store: Store) -> None:
    weights = build(ARCHITECTURE).state_dict()
    del weights["bn1.weight"]
    weights["extra.bias"] = torch.zeros(2)
    weights["fc.weight"] = torch.zeros(4, 512)
    with pytest.raises(InputRefused) as refusal:
        restore(stored(store, weights))
    for part in ("1 missing (bn1.weight)", "1 unexpected (extra.bias)", "fc.weight [4, 512], the model has [3, 512]"):
        assert part in str(refusal.value)


def test_a_deployed_model_normalises_inside() -> None:
    prepared = Preprocessing(size_px=(2, 2), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    deployed = Deployed(nn.Flatten(), prepared)
    white_NK = deployed(torch.full((1, 3, 2, 2), 255.0))
    assert torch.allclose(white_NK[0, ::4], torch.tensor([2.0, 1.0, 0.5]))
    assert list(deployed.state_dict()) == []


def test_the_contract_states_pixels_and_logits() -> None:
    contract = pixel_contract(Preprocessing(size_px=(48, 64), mean=(0.5,), std=(0.5,), colour="L"), 4)
    assert contract.inputs[0].dims == ("batch", 1, 48, 64)
    assert contract.inputs[0].value_range == (0.0, 255.0)
    assert contract.outputs[0].dims == ("batch", 4)


@pytest.mark.parametrize("name", ["mnasnet0_5", "vit_b_32", "swin_t", "densenet121"])
def test_tensors_are_never_converted_as_if_they_were_an_old_versions(name: str) -> None:
    """Modules with a version of their own rewrite, on loading, tensors that come without one, as safetensors do."""
    architecture = Architecture(f"torchvision/{name}")
    weights = dict(build(architecture).state_dict())
    net = build(architecture)
    load_strictly(net, weights, origin="weights")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in net.state_dict().items())
