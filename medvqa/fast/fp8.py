"""Products with frozen weights in 8 bits: values in float8_e4m3fn, one scale per row.

Forward and backward pass divide by another dimension of the weight, so two copies take the place
of the one in 16 bits. Shapes: N tokens, I inputs, O outputs.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import torch

LARGEST = 448.0  # of float8_e4m3fn


class Rows(NamedTuple):
    """A matrix in 8 bits.

    Attributes:
        values: (rows, columns) in float8_e4m3fn.
        scales: (rows, 1) in float32; a value times its row's scale is the number.
    """

    values: torch.Tensor
    scales: torch.Tensor


class Fp8Weight:
    """The weights of layers that read the same input, as one."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        whole = torch.cat(list(weights))
        self._rows = quantize_rows(whole)
        self._columns = quantize_rows(whole.t().contiguous())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, O) of x (N, I)."""
        return scaled_product(quantize_rows(x), self._rows, x.dtype)

    def pull_back(self, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient (N, I) of the input from that of the product (N, O)."""
        return scaled_product(quantize_rows(grad), self._columns, grad.dtype)


def quantize_rows(x: torch.Tensor) -> Rows:
    """Return x in 8 bits; the largest number of each row is the largest that 8 bits hold."""
    if x.is_cuda:
        return Rows(*import_module("medvqa.fast.triton_kernels").quantize_rows(x))
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return Rows((x.float() / scales).to(torch.float8_e4m3fn), scales)


def scaled_product(one: Rows, two: Rows, dtype: torch.dtype) -> torch.Tensor:
    """Return one times two transposed, (rows of one, rows of two)."""
    if not one.values.is_cuda:
        wide = [matrix.values.float() * matrix.scales for matrix in (one, two)]
        return (wide[0] @ wide[1].t()).to(dtype)
    if hasattr(torch.nn.functional, "scaled_mm"):
        by_row = torch.nn.functional.ScalingType.RowWise
        return torch.nn.functional.scaled_mm(
            one.values, two.values.t(), one.scales, by_row, two.scales.t(), by_row,
            output_dtype=dtype, use_fast_accum=True,
        )  # fmt: skip
    return torch._scaled_mm(
        one.values, two.values.t(), scale_a=one.scales, scale_b=two.scales.t(), out_dtype=dtype,
        use_fast_accum=True,
    )  # fmt: skip
