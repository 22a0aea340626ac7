"""The floors of shorter formats: rounding is theirs, in fp16 of every operator, in TF32 of the operands of products alone."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.backends.small import images_NCHW, small
from toolkit.backends.noise import measure_noise
from toolkit.checks.format_noise import RoundedOperators, RoundedProducts, measure_format_noise, rounded


def test_rounding_is_that_of_the_formats() -> None:
    values = torch.randn(10_000).sign() * 10 ** torch.linspace(-4, 4.5, 10_000)
    torch.testing.assert_close(rounded(values, bits=11), values.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(rounded(values, bits=8), values.bfloat16().float(), rtol=0, atol=0)
    beyond = torch.tensor([1e5, -3e38, torch.inf, -torch.inf, 0.0])
    torch.testing.assert_close(rounded(beyond, bits=11), beyond, rtol=2**-11, atol=0)


def test_rounding_at_random_is_right_on_average_and_leaves_what_fits() -> None:
    random = torch.Generator().manual_seed(0)
    third = torch.full((40_000,), 1 / 3)
    drawn = rounded(third, bits=8, random=random)
    assert len(drawn.unique()) == 2
    assert drawn.double().mean() == pytest.approx(1 / 3, rel=1e-4)
    fits = torch.tensor([1.0, -0.5, 255.0])
    torch.testing.assert_close(rounded(fits, bits=8, random=random), fits, rtol=0, atol=0)


def test_every_operator_is_rounded_in_place_too() -> None:
    values = torch.full((4,), 1.0)
    with torch.inference_mode(), RoundedOperators(bits=11, random=None):
        added = values + 2**-12
        values.add_(2**-12)
        product = torch.full((2, 2), 1 / 3) @ torch.full((2, 2), 1.0)
        views = product.transpose(0, 1).reshape(-1)
    torch.testing.assert_close(added, torch.ones(4), rtol=0, atol=0)
    torch.testing.assert_close(values, torch.ones(4), rtol=0, atol=0)
    torch.testing.assert_close(views, views.half().float(), rtol=0, atol=0)


def test_the_floor_is_that_of_float16_and_grows_with_fewer_bits() -> None:
    deployed = small()
    before = {name: tensor.clone() for name, tensor in deployed.state_dict().items()}
    images = images_NCHW()[:20]
    half, brain = (measure_format_noise(deployed, images, precision=precision, num_runs=3) for precision in ("fp16", "bf16"))
    single = measure_noise(deployed, images, num_runs=3)
    np.testing.assert_array_equal(half.double_NK, single.double_NK)
    assert 2 < np.log2(half.float32_share / single.float32_share) < 18
    assert 1.5 < np.log2(brain.float32_share / half.float32_share) < 4.5
    assert len({run_NK.tobytes() for run_NK in half.single_RNK}) == 3
    again = measure_format_noise(deployed, images, num_runs=3)
    np.testing.assert_array_equal(again.single_RNK, half.single_RNK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in deployed.state_dict().items())


def test_a_module_that_works_in_place_keeps_its_answers() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).eval()
    images = np.random.default_rng(0).uniform(0, 1, (6, 3, 2, 2)).astype(np.float32)
    noise = measure_format_noise(net, images, num_runs=2)
    assert 1e-6 < noise.float32_share < 5e-3


def test_tf32_rounds_the_operands_of_products_and_nothing_else() -> None:
    a, b = torch.full((2, 2), 1 / 3), torch.full((2, 2), 1.0)
    images, filters = torch.full((1, 1, 3, 3), 1 / 3), torch.full((1, 1, 3, 3), 1.0)
    with torch.inference_mode(), RoundedProducts(bits=11, random=None):
        added, product = a + 2**-20, a @ b
        convolved = torch.conv2d(images, filters)
    third = a.half().float()
    assert torch.equal(added, a + 2**-20)
    torch.testing.assert_close(product, third @ b, rtol=1e-7, atol=0)
    assert not torch.allclose(product, a @ b, rtol=1e-5, atol=0)
    torch.testing.assert_close(convolved, third[:1, :1, None, None] * 9, rtol=1e-6, atol=0)


def test_the_floor_of_tf32_lies_between_those_of_float32_and_bf16() -> None:
    deployed, images = small(), images_NCHW()[:20]
    shares = [measure_noise(deployed, images, num_runs=3).float32_share]
    shares += [measure_format_noise(deployed, images, precision=p, num_runs=3).float32_share for p in ("tf32", "bf16")]
    assert 4 * shares[0] < shares[1] < shares[2] / 2


def test_tf32_reaches_attention() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(48, 3))
    images = np.random.default_rng(0).uniform(0, 1, (6, 3, 4, 4)).astype(np.float32)
    assert 1e-5 < measure_format_noise(net.eval(), images, precision="tf32", num_runs=2).float32_share < 1e-2
