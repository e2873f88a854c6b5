"""Fused GPU kernels of the decoder layer; `medvqa.fast.kernels` says what each computes.

Imported only where tensors are on a GPU. One program handles a token (or a block of it), sums run
in float32.
"""

import torch
import triton
import triton.language as tl

from medvqa.fast.norm_rope import NormRope

HEADS_PER_PROGRAM = 8
COLUMNS_PER_PROGRAM = 1024


@triton.jit
def _rms_norm_backward(x, weight, grad, residual, out, width, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + start + columns, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(residual + start + columns, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(value * value) / width + eps)
    normal = value * rstd
    result = added + rstd * (scaled - normal * (tl.sum(scaled * normal) / width))
    tl.store(out + start + columns, result.to(out.dtype.element_ty), mask=inside)


def rms_norm_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    grad: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    """See `medvqa.fast.kernels.rms_norm_backward`."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    warps = 8 if block >= 2048 else 4
    _rms_norm_backward[(len(x),)](
        x, weight, grad, residual, out, width, eps, BLOCK=block, num_warps=warps
    )
    return out


@triton.jit
def _norm_rope(
    qk, row_stride, q_weight, k_weight, cos, sin, out, num_q, num_heads, half, eps,
    HALF: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    in_half = column < half  # HALF is a power of two, which half a head of a tower is not
    inside = (head < num_heads) & in_half
    source = qk + token * row_stride + head * (2 * half) + column
    one = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(one * one, axis=1) + tl.sum(two * two, axis=1)
        rstd = tl.rsqrt(square / (2 * half) + eps)[:, None]
        of_q = head < num_q
        w_one = tl.where(of_q, tl.load(q_weight + column, mask=in_half, other=0.0),
                         tl.load(k_weight + column, mask=in_half, other=0.0))  # fmt: skip
        w_two = tl.where(of_q, tl.load(q_weight + half + column, mask=in_half, other=0.0),
                         tl.load(k_weight + half + column, mask=in_half, other=0.0))  # fmt: skip
        one = one * rstd * w_one.to(tl.float32)
        two = two * rstd * w_two.to(tl.float32)
    c = tl.load(cos + token * half + column, mask=in_half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * half + column, mask=in_half, other=0.0).to(tl.float32)
    target = out + token * num_heads * (2 * half) + head * (2 * half) + column
    tl.store(target, (one * c - two * s).to(out.dtype.element_ty), mask=inside)
    tl.store(target + half, (two * c + one * s).to(out.dtype.element_ty), mask=inside)


def norm_rope(qk: torch.Tensor, turn: NormRope, num_q: int) -> torch.Tensor:
    """See `medvqa.fast.kernels.norm_rope`."""
    q_weight, k_weight, eps, cos, sin = turn
    tokens, num_heads, width = qk.shape
    out = torch.empty((tokens, num_heads, width), dtype=qk.dtype, device=qk.device)
    has_norm = q_weight is not None
    grid = (tokens, triton.cdiv(num_heads, HEADS_PER_PROGRAM))
    _norm_rope[grid](
        qk, qk.stride(0), q_weight if has_norm else cos, k_weight if has_norm else cos, cos, sin,
        out, num_q, num_heads, width // 2, eps, HALF=triton.next_power_of_2(width // 2),
        HEADS=HEADS_PER_PROGRAM, NORM=has_norm,
    )  # fmt: skip
    return out


@triton.jit
def _norm_rope_backward(
    qk, row_stride, q_weight, k_weight, cos, sin, q_grad, k_grad, out, out_stride, num_q, num_heads,
    eps, HALF: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = head < num_heads
    of_q = head < num_q
    in_q = q_grad + token * num_q * (2 * HALF) + head * (2 * HALF) + column
    in_k = k_grad + token * (num_heads - num_q) * (2 * HALF) + (head - num_q) * (2 * HALF) + column
    is_k = inside & (head >= num_q)
    turned_one = tl.load(in_q, mask=of_q, other=0.0) + tl.load(in_k, mask=is_k, other=0.0)
    turned_two = tl.load(in_q + HALF, mask=of_q, other=0.0)
    turned_two += tl.load(in_k + HALF, mask=is_k, other=0.0)
    turned_one = turned_one.to(tl.float32)
    turned_two = turned_two.to(tl.float32)
    c = tl.load(cos + token * HALF + column).to(tl.float32)
    s = tl.load(sin + token * HALF + column).to(tl.float32)
    d_one = turned_one * c + turned_two * s
    d_two = turned_two * c - turned_one * s
    if NORM:
        source = qk + token * row_stride + head * (2 * HALF) + column
        one = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        two = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        square = tl.sum(one * one, axis=1) + tl.sum(two * two, axis=1)
        rstd = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
        w_one = tl.where(of_q, tl.load(q_weight + column), tl.load(k_weight + column))
        w_two = tl.where(of_q, tl.load(q_weight + HALF + column), tl.load(k_weight + HALF + column))
        d_one *= w_one.to(tl.float32)
        d_two *= w_two.to(tl.float32)
        one *= rstd
        two *= rstd
        mean = (tl.sum(d_one * one, axis=1) + tl.sum(d_two * two, axis=1))[:, None] / (2 * HALF)
        d_one = rstd * (d_one - one * mean)
        d_two = rstd * (d_two - two * mean)
    target = out + token * out_stride + head * (2 * HALF) + column
    tl.store(target, d_one.to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, d_two.to(out.dtype.element_ty), mask=inside)


def norm_rope_backward(
    qk: torch.Tensor, turn: NormRope, q_grad: torch.Tensor, k_grad: torch.Tensor, out: torch.Tensor
) -> None:
    """See `medvqa.fast.kernels.norm_rope_backward`."""
    q_weight, k_weight, eps, cos, sin = turn
    tokens, num_heads, width = qk.shape
    has_norm = q_weight is not None
    grid = (tokens, triton.cdiv(num_heads, HEADS_PER_PROGRAM))
    _norm_rope_backward[grid](
        qk, qk.stride(0), q_weight if has_norm else cos, k_weight if has_norm else cos, cos, sin,
        q_grad, k_grad, out, out.stride(0), q_grad.shape[1], num_heads, eps,
        HALF=width // 2, HEADS=HEADS_PER_PROGRAM, NORM=has_norm,
    )  # fmt: skip


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + token * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + token * width + column, result.to(out.dtype.element_ty), mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See `medvqa.fast.kernels.swiglu`."""
    tokens, width = len(gate_up), gate_up.shape[-1] // 2
    out = gate_up.new_empty((tokens, width))
    grid = (tokens, triton.cdiv(width, COLUMNS_PER_PROGRAM))
    _swiglu[grid](gate_up, out, width, BLOCK=COLUMNS_PER_PROGRAM)
    return out


@triton.jit
def _swiglu_backward(gate_up, grad, out, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + token * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + token * width + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    active = gate * share
    kind = gate_up.dtype.element_ty
    tl.store(out + token * width + column, (active * up).to(kind), mask=inside)
    d_gate = d * up * (share + active * (1.0 - share))
    tl.store(source, d_gate.to(kind), mask=inside)
    tl.store(source + width, (d * active).to(kind), mask=inside)


def swiglu_backward(gate_up: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """See `medvqa.fast.kernels.swiglu_backward`."""
    tokens, width = grad.shape
    out = torch.empty_like(grad)
    grid = (tokens, triton.cdiv(width, COLUMNS_PER_PROGRAM))
    _swiglu_backward[grid](gate_up, grad, out, width, BLOCK=COLUMNS_PER_PROGRAM)
    return out


@triton.jit
def _quantize_rows(x, row_stride, values, scales, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(
        values + row * width + column, (value / scale).to(values.dtype.element_ty), mask=inside
    )


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `medvqa.fast.fp8.quantize_rows`."""
    num_rows, width = x.shape
    values = torch.empty((num_rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    warps = 8 if block >= 2048 else 4
    _quantize_rows[(num_rows,)](x, x.stride(0), values, scales, width, BLOCK=block, num_warps=warps)
    return values, scales
