"""The response of a fit along an eigenvector, against its definition as an integral, its limits, and refusals."""

import math

import numpy as np
import pytest
import torch

from rayinf.core.inverse import dense_unrolled, eigen_inverse
from rayinf.core.response import Damped, Unrolled, parse_damping, saturation
from rayinf.errors import InputError


def flow(curvature: float, time: float, steps: int = 20_000) -> float:
    """How far gradient flow moves along a direction under a constant push, by small steps."""
    at = 0.0
    for _ in range(steps):
        at += time / steps * (1.0 - curvature * at)
    return at


@pytest.mark.parametrize("curvature", [0.0, 1e-12, 1e-3, 0.7, 30.0, -0.4])
@pytest.mark.parametrize("time", [0.1, 5.0])
def test_saturation_is_gradient_flow(curvature: float, time: float) -> None:
    found = time * float(saturation(torch.tensor([time * curvature], dtype=torch.float64)))
    assert found == pytest.approx(flow(curvature, time), rel=1e-2 if curvature > 10 else 1e-3)


def test_saturation_near_zero_loses_no_digit() -> None:
    x = torch.tensor([0.0, 1e-9, 1e-7, 1e-4], dtype=torch.float64)
    truth = [1.0 if v == 0 else -math.expm1(-v) / v for v in x.tolist()]
    np.testing.assert_allclose(saturation(x), truth, rtol=1e-12)


def test_a_layer_between_the_inverse_and_the_gradient_product() -> None:
    level = torch.tensor([[[0.5, 2.0], [1e-3, 4.0]]], dtype=torch.float64)
    rows, l2 = 10, 0.1
    long = eigen_inverse(level, rows, l2, Unrolled({"": 1e9}))
    np.testing.assert_allclose(long, 1 / (rows * (level + l2)), rtol=1e-12)
    short = eigen_inverse(level, rows, l2, Unrolled({"": 1e-9}))
    np.testing.assert_allclose(short, torch.full_like(level, 1e-9 / rows), rtol=1e-6)


def test_layers_have_their_own_times_and_decays() -> None:
    level = torch.ones(1, 1, 1, dtype=torch.float64)
    response = Unrolled({"a": 1.0, "b": 3.0}, {"b": 0.5})
    for name, time, decay in (("a", 1.0, 0.0), ("b", 3.0, 0.5)):
        found = float(eigen_inverse(level, 2, 0.25, response, name))
        x = 1.25 + decay
        assert found == pytest.approx((1 - math.exp(-time * x)) / x / 2)


def test_held_out_rows_raise_the_curvature_and_the_gradients() -> None:
    level = torch.tensor([[[0.5, 2.0]]], dtype=torch.float64)
    for response, plain in (
        (Unrolled({"": 2.0}, held_out=9.0), Unrolled({"": 2.0})),
        (Damped(added=0.3, held_out=9.0), Damped(added=0.3)),
    ):
        np.testing.assert_allclose(
            eigen_inverse(level, 4, 0.0, response), 3 * eigen_inverse(9 * level, 4, 0.0, plain), rtol=1e-12
        )


def test_damping_by_rules() -> None:
    assert parse_damping(0.2).damping(5.0, 100) == 0.2
    assert parse_damping("layer_mean:0.1").damping(5.0, 100) == pytest.approx(0.5)
    rule = Damped(sample=3.0, columns=600.0)
    assert rule.damping(5.0, 100) == pytest.approx(3 * 5.0 * 100 / 600)


@pytest.mark.parametrize(
    "text", ["", "0.1", "sample", "sample:", "sample:-1", "mean:1", "layer_mean:inf", "sample:nan"]
)
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_damping(text)


def test_a_dense_curvature_with_a_time_for_every_parameter() -> None:
    """Gradient flow with other rates in other parameters, by small steps."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    h, time = root @ root.T / 4, torch.tensor([0.5, 0.5, 3.0, 1.0], dtype=torch.float64)
    shift = torch.tensor([0.1, 0.1, 0.0, 0.2], dtype=torch.float64)
    push, steps = torch.randn(4, generator=generator, dtype=torch.float64), 20_000
    at = torch.zeros(4, dtype=torch.float64)
    for _ in range(steps):
        at = at + time / steps * (push - h @ at - shift * at)
    found = dense_unrolled(h, 1.0, shift, time) @ push
    np.testing.assert_allclose(found, at, rtol=2e-3)
    same = dense_unrolled(h, 1.0, shift, torch.full((4,), 2.0, dtype=torch.float64))
    assert not torch.allclose(dense_unrolled(h, 1.0, shift, time), same, rtol=0.05)


def test_a_curvature_that_is_too_negative_is_refused() -> None:
    with pytest.raises(InputError, match="shorter training_time"):
        dense_unrolled(
            torch.diag(torch.tensor([1.0, -1.0]).double()),
            1.0,
            torch.zeros(2).double(),
            torch.full((2,), 50.0).double(),
        )
