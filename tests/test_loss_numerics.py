"""Gradients, precision, degenerate input and compilation of the losses."""

import pytest
import torch
from loss_cases import LOSSES, by_autograd, each_loss, embeddings

from ssl_views import vicreg_loss


@each_loss
@pytest.mark.parametrize("num_views", [2, 3])
def test_gradient_is_right(loss, num_views):
    z = embeddings(num_views, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x).total, z)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    z = embeddings(3, 32, 8).to(dtype)
    result = loss(z)
    assert result.total.dtype == torch.float32
    if loss is not LOSSES["vicreg"]:  # there the test scales in half precision
        torch.testing.assert_close(result.total, loss(z.float()).total, atol=0, rtol=1e-6)


@each_loss
def test_autocast_changes_nothing(loss):
    z = embeddings(3, 32, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(z)
    assert inside.total.dtype == torch.float32
    assert torch.equal(inside.total, loss(z).total)


@each_loss
@pytest.mark.parametrize("num_images", [2, 6, 20])  # both sides of the dimension
@pytest.mark.parametrize("degenerate", ["equal rows", "dead dimension", "nothing"])
def test_degenerate_batches_are_finite(loss, degenerate, num_images):
    z = embeddings(3, num_images, 8)
    if degenerate == "equal rows":
        z = z[:, :1].expand_as(z).clone()
    elif degenerate == "dead dimension":
        z = z * (torch.arange(8) > 0)
    z = z.float().requires_grad_()
    total = loss(z).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(z.grad).all()


@each_loss
@pytest.mark.parametrize("dim", [4, 12])
def test_nan_stays_visible(loss, dim):
    z = embeddings(2, 6, dim)
    z[0, 0, 0] = torch.nan
    z.requires_grad_()
    total = loss(z).total
    total.backward()
    assert torch.isnan(total)
    assert torch.isnan(z.grad).any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 40, 9), (5, 40, 9), (2, 9, 40), (5, 9, 40), (16, 30, 20)])
def test_gradient_equals_autograd_of_the_formula(name, shape):
    z = embeddings(*shape).requires_grad_()
    (ours,) = torch.autograd.grad(LOSSES[name](z).total, z)
    (expected,) = torch.autograd.grad(by_autograd(name, z), z)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(LOSSES[name](z).total, by_autograd(name, z), atol=0, rtol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 256, 256), (4, 256, 512), (4, 512, 128)])
def test_bfloat16_embeddings_keep_the_gradient(name, shape):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, *shape[1:], generator=g) + 0.5 * torch.randn(*shape, generator=g)
    exact = z.double().requires_grad_()
    scale = 5 if name == "vicreg" else 1  # by_autograd multiplies by 0.2
    (expected,) = torch.autograd.grad(by_autograd(name, scale * exact), exact)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        half = z.to(dtype).requires_grad_()
        total = (vicreg_loss if name == "vicreg" else LOSSES[name])(half).total
        (ours,) = torch.autograd.grad(total, half)
        assert ours.dtype == dtype
        error = (ours.double() - expected).norm() / expected.norm()
        assert error < tolerance, (dtype, error)


@each_loss
@pytest.mark.parametrize("shape", [(4, 32, 8), (4, 8, 32)])
def test_the_loss_compiles_without_graph_breaks(loss, shape):
    z = embeddings(*shape, dtype=torch.float32).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: loss(x).total, fullgraph=True, backend="aot_eager")
    total = compiled(z)
    torch.testing.assert_close(total, loss(z).total)
    (ours,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(ours, torch.autograd.grad(loss(z).total, z)[0])


@each_loss
def test_without_gradient_the_value_is_the_same(loss):
    z = embeddings(3, 16, 8)
    with_gradient = loss(z.clone().requires_grad_())
    assert loss(z).total == with_gradient.total
    assert not loss(z).total.requires_grad
    assert with_gradient.total.requires_grad
    assert not any(term.requires_grad for term in with_gradient.terms.values())


def error_of(name, z, part=...):
    """Relative error of the float32 gradient against float64."""
    loss = vicreg_loss if name == "vicreg" else LOSSES[name]  # that in LOSSES scales, and rounds
    exact, single = z.double().requires_grad_(), z.float().requires_grad_()
    (expected,) = torch.autograd.grad(loss(exact).total, exact)
    (found,) = torch.autograd.grad(loss(single).total, single)
    expected, found = expected[..., part], found.double()[..., part]
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(4, 128, 32), (4, 32, 128)])
@pytest.mark.parametrize("mean", [0, 100, 1000])
def test_a_large_mean_costs_no_precision(name, shape, mean):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, *shape[1:], generator=g) + 0.5 * torch.randn(*shape, generator=g)
    z = (z + mean).float()  # rounded here: what is lost before the loss is not its fault
    assert error_of(name, z) < 1e-5


@pytest.mark.parametrize("name", ["vicreg", "kernel"])
def test_a_dimension_of_another_scale_costs_little(name):
    z = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0))
    z[..., 0] *= 10
    assert error_of(name, z, part=slice(0, 1)) < 2e-5


@pytest.mark.parametrize("name", LOSSES)
def test_values_of_millions_of_entries_keep_their_digits(name):
    z = torch.randn(2, 1536, 1536, generator=torch.Generator().manual_seed(0))
    found, expected = LOSSES[name](z), LOSSES[name](z.double())
    for term, value in expected.terms.items():
        assert found.terms[term].item() == pytest.approx(value.item(), rel=1e-5), term
