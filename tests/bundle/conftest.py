"""A manifest and a bundle to handle."""

import pytest
import torch

from toolkit.bundle import Architecture, Bundle, Contract, Lineage, Manifest, Preprocessing, Store


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        architecture=Architecture("torchvision/resnet18", {"num_classes": 2}),
        labels=("functional", "defective"),
        preprocessing=Preprocessing((64, 64)),
        contract=Contract(),
        lineage=Lineage("adopt", recipe="seed: 0\n", packages={"model-upgrade-toolkit": "0.1.0"}),
    )


@pytest.fixture
def bundle(store: Store, manifest: Manifest) -> Bundle:
    return store.add(manifest, weights={"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3)})
