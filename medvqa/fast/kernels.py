"""What the decoder layer computes between its matrix products: a fused kernel each on a GPU.

Shapes: N tokens of all sequences of a batch, H their width, D the width of a head. The same
functions in PyTorch's own operations serve a CPU and are the reference in the tests. Weights of
norms take no gradient.
"""

from importlib import import_module
from typing import Any

import torch

from medvqa.fast.norm_rope import NormRope


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x, (N, H), divided by its root mean square (Zhang and Sennrich, NeurIPS 2019)."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def rms_norm_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    grad: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient of x, (N, H), plus that of the residual branch around the norm."""
    if x.is_cuda:
        return _fused().rms_norm_backward(x, weight, eps, grad, residual)  # type: ignore[no-any-return]
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal, scaled = x * rstd, grad * weight
    return residual + rstd * (scaled - normal * (scaled * normal).mean(-1, keepdim=True))


def norm_rope(qk: torch.Tensor, turn: NormRope, num_q: int) -> torch.Tensor:
    """Return queries and keys, (N, heads, D), normed per head and rotated by their positions.

    Args:
        qk: (N, heads, D): the first `num_q` heads are queries, the others keys.
        turn: Norms and positions.
        num_q: Heads of queries.
    """
    if qk.is_cuda and not qk.requires_grad:
        return _fused().norm_rope(qk, turn, num_q)  # type: ignore[no-any-return]
    q_weight, k_weight, eps, cos, sin = turn
    if q_weight is not None and k_weight is not None:
        qk = torch.cat(
            [rms_norm(qk[:, :num_q], q_weight, eps), rms_norm(qk[:, num_q:], k_weight, eps)], dim=1
        )
    return _rotated(qk, cos, sin).to(qk.dtype)


def norm_rope_backward(
    qk: torch.Tensor, turn: NormRope, q_grad: torch.Tensor, k_grad: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the gradient of `norm_rope`'s qk into `out`, of the same shape."""
    if qk.is_cuda:
        _fused().norm_rope_backward(qk, turn, q_grad.contiguous(), k_grad.contiguous(), out)
        return
    q_weight, k_weight, eps, cos, sin = turn
    num_q = q_grad.shape[1]
    grad = _rotated(torch.cat([q_grad, k_grad], dim=1), cos, -sin)
    if q_weight is not None and k_weight is not None:
        nothing = torch.zeros(())
        for heads, weight in ((slice(0, num_q), q_weight), (slice(num_q, None), k_weight)):
            out[:, heads] = rms_norm_backward(qk[:, heads], weight, eps, grad[:, heads], nothing)
    else:
        out.copy_(grad)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, two = x.chunk(2, dim=-1)
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([one * c - two * s, two * c + one * s], dim=-1)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (N, I), of their two halves, (N, 2 I) (Shazeer, 2020)."""
    if gate_up.is_cuda:
        return _fused().swiglu(gate_up)  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def swiglu_backward(gate_up: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up anew; `gate_up` then holds its own gradient."""
    if gate_up.is_cuda:
        return _fused().swiglu_backward(gate_up, grad)  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    share = torch.sigmoid(gate)
    active = gate * share
    result = active * up
    gradients = grad * up * (share + active * (1 - share)), grad * active
    gate.copy_(gradients[0])
    up.copy_(gradients[1])
    return result


def _fused() -> Any:
    return import_module("medvqa.fast.triton_kernels")
