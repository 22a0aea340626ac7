"""The model between two: at either end it is that one, between them it answers like both."""

import copy

import pytest
import torch

from tests.checks.planted import PREPROCESSING, images, stored, trained
from toolkit.bundle import Store
from toolkit.checks.evaluate import predict_bundle
from toolkit.checks.flips import Flips
from toolkit.data import Normalise, load_pixels
from toolkit.errors import UsageError
from toolkit.stages.ensemble import ensemble
from toolkit.stages.interpolate import interpolate


def test_the_ends_are_the_two_models_but_for_their_statistics(store: Store) -> None:
    old, new = stored(store, trained(num_epochs=3, seed=1)), stored(store, trained(num_epochs=8))
    for share, end in ((0.0, old), (1.0, new)):
        found = interpolate(new, store=store, baseline=old, data=images(), share=share).weights()
        for name, tensor in end.weights().items():
            if "running" not in name and "tracked" not in name:
                assert torch.equal(found[name], tensor), name
    middle = interpolate(new, store=store, baseline=old, data=images())
    assert middle.manifest.lineage.parents == (new.digest, old.digest)
    mean = (old.weights()["0.weight"] + new.weights()["0.weight"]) / 2
    assert torch.allclose(middle.weights()["0.weight"], mean)
    assert interpolate(new, store=store, baseline=old, data=images()).digest == middle.digest
    assert (store.reports(middle.digest)["evaluate"].value("accuracy") or 0) > 0


def test_the_model_between_a_net_and_its_further_training_flips_less(store: Store) -> None:
    old, new = stored(store, trained(num_epochs=3, seed=1)), stored(store, further())
    pixels = load_pixels(images().split("test"), old.manifest.preprocessing)
    between = interpolate(new, store=store, baseline=old, data=images(), share=0.5)
    answers = {bundle.digest: predict_bundle(bundle, pixels) for bundle in (old, new, between)}
    flips = {name: Flips(answers[old.digest], answers[name]) for name in (new.digest, between.digest)}
    assert flips[between.digest].num_negative <= flips[new.digest].num_negative
    assert answers[between.digest].correct_N.mean() > answers[old.digest].correct_N.mean()


def further() -> torch.nn.Module:
    """The net of three epochs, trained on for two more with other batches."""
    net = copy.deepcopy(trained(num_epochs=3, seed=1)).train()
    pixels = load_pixels(images().split("train"), PREPROCESSING)
    normalise, optimiser = Normalise(PREPROCESSING), torch.optim.AdamW(net.parameters(), lr=3e-3)
    torch.manual_seed(5)
    for _ in range(4):
        for batch in torch.randperm(len(pixels)).split(64):
            loss = torch.nn.functional.cross_entropy(net(normalise(pixels.images_NCHW[batch])), pixels.targets_N[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def test_models_of_two_kinds_are_refused(store: Store) -> None:
    old, wide = stored(store, trained(num_epochs=1)), stored(store, trained(num_epochs=1, width=16), width=16)
    with pytest.raises(UsageError, match="architecture"):
        interpolate(wide, store=store, baseline=old, data=images())
    with pytest.raises(UsageError, match="share is 2"):
        interpolate(old, store=store, baseline=old, data=images(), share=2)
    both = ensemble([old, stored(store, trained(num_epochs=3, seed=1))], store=store)
    with pytest.raises(UsageError, match="members"):
        interpolate(both, store=store, baseline=old, data=images())
