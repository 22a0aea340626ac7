"""The reference profile: beside the reports, never in the digest; without images; whole or absent; made once."""

from pathlib import Path

import numpy as np
import pytest

from tests.checks.planted import images, stored, trained
from toolkit.backends import open_runner
from toolkit.bundle import ONNX, Store
from toolkit.checks.observed import observe
from toolkit.checks.profile import load_profile, make_profile
from toolkit.data import load_pixels
from toolkit.data.image_statistics import STATISTICS
from toolkit.errors import InputRefused, UsageError


def test_profile_lies_beside_the_reports_and_holds_no_image(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=8))
    assert load_profile(store, bundle) is None
    profile = make_profile(bundle, images(), store=store, max_samples=300)
    assert store.open(bundle.digest).digest == bundle.digest
    files = {path.name for path in (store.root / "reports" / bundle.digest).iterdir()}
    assert "profile.json" in files
    assert len(files) == 2
    assert len(profile) == 300
    assert profile.embeddings_MP.shape[0] == 225, "a quarter of the images only serves to fit the components"
    numbers = sum(tensor.numel() for tensor in store.report_tensors(profile.report).values())
    assert numbers < 300 * 3 * 32 * 32 / 10
    assert profile.report.details["priors"]["labels"] == dict(
        zip(images().labels, np.bincount(profile.predictions.targets_N).tolist(), strict=True)
    )
    again = make_profile(bundle, images(), store=store, max_samples=300)
    assert again.report.environment == profile.report.environment, "the same images are not looked at twice"
    assert {path.name for path in (store.root / "reports" / bundle.digest).iterdir()} == files


def test_what_is_read_back_is_what_was_seen(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=8))
    profile = make_profile(bundle, images(), store=store, max_samples=200)
    seen = observe(bundle, images(), split="test", max_samples=200)
    assert np.array_equal(profile.statistics_NS, seen.statistics_NS)
    assert np.array_equal(profile.predictions.log_probabilities_NK, seen.predictions.log_probabilities_NK)
    assert np.allclose(profile.embed(seen.features_ND)[profile.compared], profile.embeddings_MP)
    assert profile.digests == set(seen.digests)
    assert profile.slices == seen.slices
    fitted = profile.embed(seen.features_ND)[: 200 - len(profile.embeddings_MP)]
    assert np.allclose(np.cov(fitted.T), np.eye(fitted.shape[1]), atol=1e-6)


def test_module_graph_and_graph_of_unknown_origin_give_the_same_features(store: Store, tmp_path: Path) -> None:
    net = trained(num_epochs=8)
    plain, exported = stored(store, net), stored(store, net, graph=tmp_path / "net.onnx")
    parts = [observe(bundle, images(), split="test", max_samples=64) for bundle in (plain, exported)]
    assert parts[0].source == "the input of the head"
    assert "last layer" in parts[1].source
    assert parts[0].features_ND.shape == (64, 32)
    assert np.allclose(parts[0].features_ND, parts[1].features_ND, atol=1e-4)
    pixels = load_pixels(images().split("test"), exported.manifest.preprocessing)
    logits = open_runner(exported)(pixels.images_NCHW[:64].numpy())
    assert exported.has(ONNX)
    assert logits.shape == (64, 3)


def test_damage_and_too_few_images_are_refused(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=8))
    with pytest.raises(UsageError, match="too few for a reference profile"):
        make_profile(bundle, images(), store=store, max_samples=30)
    profile = make_profile(bundle, images(), store=store, max_samples=60)
    path = store.root / "reports" / bundle.digest / profile.report.details["tensors"]["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputRefused, match="corrupt"):
        load_profile(store, bundle)
    path.unlink()
    with pytest.raises(InputRefused, match="cannot be read"):
        load_profile(store, bundle)


def test_known_images_are_left_out_and_foreign_labels_are_named(store: Store) -> None:
    bundle = stored(store, trained(num_epochs=8), labels=("circle", "square", "star"))
    seen = observe(bundle, images(), split="test", max_samples=100)
    assert seen.new_labels == ("triangle",)
    assert set(seen.predictions.targets_N.tolist()) == {-1, 0, 1}
    rest = observe(bundle, images(), split="test", max_samples=1000, known=seen.digests)
    assert not set(rest.digests) & set(seen.digests)
    assert rest.num_known == 100
    strangers = stored(store, trained(num_epochs=8), labels=("a", "b", "c"))
    assert not observe(strangers, images(), split="test", max_samples=50).is_labelled
    assert len(STATISTICS) == seen.statistics_NS.shape[1]
    everything = observe(bundle, images(), split="test", max_samples=10_000).digests
    with pytest.raises(UsageError, match="in the reference profile already"):
        observe(bundle, images(), split="test", max_samples=10, known=everything)
