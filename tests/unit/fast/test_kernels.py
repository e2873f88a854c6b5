"""Formulas of the backward pass are the derivatives."""

import torch

from medvqa.fast import kernels


def gradient(function, *tensors, of):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    (result,) = torch.autograd.grad(function(*tensors), tensors[0], of)
    return result


def test_backward_formulas_are_the_derivatives():
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    x, weight, grad = (
        torch.randn(3, 10, **double),
        torch.randn(10, **double),
        torch.randn(3, 10, **double),
    )
    found = kernels.rms_norm_backward(x, weight, 1e-6, grad, torch.ones_like(x))
    expected = gradient(lambda x: kernels.rms_norm(x, weight, 1e-6), x, of=grad)
    assert torch.allclose(found, expected + 1)

    qk, cos, sin = (
        torch.randn(3, 5, 8, **double),
        torch.randn(3, 4, **double),
        torch.randn(3, 4, **double),
    )
    norms = torch.randn(8, **double), torch.randn(8, **double)
    turned = torch.randn(3, 5, 8, **double)
    for pair in (norms, (None, None)):
        found = torch.empty_like(qk)
        turn = kernels.NormRope(*pair, 1e-6, cos, sin)
        kernels.norm_rope_backward(qk, turn, turned[:, :4], turned[:, 4:], found)
        expected = gradient(lambda qk, turn=turn: kernels.norm_rope(qk, turn, 4), qk, of=turned)
        assert torch.allclose(found, expected)

    gate_up, active = torch.randn(3, 12, **double), torch.randn(3, 6, **double)
    expected = gradient(kernels.swiglu, gate_up, of=active)
    product = kernels.swiglu(gate_up)
    assert torch.allclose(kernels.swiglu_backward(gate_up, active), product)
    assert torch.allclose(gate_up, expected)
