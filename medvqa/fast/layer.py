"""One decoder layer of Qwen-VL, forward and backward, written out.

The layer is that of transformers: RMSNorm, rotary attention with grouped queries, gated MLP, LoRA
as in PEFT, on the loaded model's own weights. The backward pass computes again what is cheap.
Shapes: N tokens of all sequences, H width of the model, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from medvqa.fast import kernels
from medvqa.fast.attention import Segments, attend
from medvqa.fast.norm_rope import NormRope
from medvqa.fast.projection import Group, LowRank


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of every token, (N, D / 2) each."""

    cos: torch.Tensor
    sin: torch.Tensor


class Layer:
    """One decoder layer's weights."""

    def __init__(self, module: Any, *, in_8_bits: bool = False) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.norm, self.middle_norm = module.input_layernorm, module.post_attention_layernorm
        self.eps = float(self.norm.variance_epsilon)
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)
        self.head_width = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        group = partial(Group, in_8_bits=in_8_bits)
        self.qkv = group([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = group([attention.o_proj])
        self.gate_up = group([mlp.gate_proj, mlp.up_proj])
        self.down = group([mlp.down_proj])
        groups = int(attention.num_key_value_groups)
        self.num_k = _num_outputs(attention.k_proj) // self.head_width
        self.num_q = self.num_k * groups
        self.mlp_width = _num_outputs(mlp.up_proj)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Outputs of the queries, of the keys and of the MLP's first half."""
        return self.num_q * self.head_width, self.num_k * self.head_width, self.mlp_width

    @property
    def has_dropout(self) -> bool:
        """Whether the adapter drops inputs in training."""
        return any(g.has_dropout for g in (self.qkv, self.out, self.gate_up, self.down))

    def norm_rope(self, rope: Rope) -> NormRope:
        """Return the norms of queries and keys, which Qwen2-VL has not, and their rotation."""
        q, k = (None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm))
        return NormRope(q, k, self.eps, rope.cos, rope.sin)

    def turned(self, qkv: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, ...]:
        """Return q, k and v, (N, heads, D), ready for attention."""
        heads = qkv.view(len(qkv), -1, self.head_width)
        num_qk = self.num_q + self.num_k
        qk = kernels.norm_rope(heads[:, :num_qk], self.norm_rope(rope), self.num_q)
        return qk[:, : self.num_q], qk[:, self.num_q :], heads[:, num_qk:]

    def project(
        self, x: torch.Tensor, parameters: Sequence[torch.Tensor], *, training: bool
    ) -> tuple[torch.Tensor, LowRank]:
        """Return queries, keys and values side by side, before norm and rotation."""
        normal = kernels.rms_norm(x, self.norm.weight, self.eps)
        return self.qkv.forward(normal, parameters, training=training)

    def finish(
        self,
        attended: torch.Tensor,
        x: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        *,
        training: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[LowRank, LowRank, LowRank]]:
        """Return the layer's result, and what its backward pass needs."""
        outs, gates, downs = self.split(parameters)
        middle, out_low_rank = self.out.forward(attended, outs, training=training)
        middle += x
        normal = kernels.rms_norm(middle, self.middle_norm.weight, self.eps)
        gate_up, gate_low_rank = self.gate_up.forward(normal, gates, training=training)
        result, down_low_rank = self.down.forward(kernels.swiglu(gate_up), downs, training=training)
        result += middle
        return result, middle, gate_up, (out_low_rank, gate_low_rank, down_low_rank)

    def split(self, parameters: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], ...]:
        """Return those of `out`, `gate_up` and `down`, the order of `finish`."""
        if not parameters:
            return (), (), ()
        one = self.out.num_parameters
        two = one + self.gate_up.num_parameters
        return parameters[:one], parameters[one:two], parameters[two:]

    def parameters(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        """Return those of `project` and of `finish`; none while the adapter is disabled."""
        rest = [p for group in (self.out, self.gate_up, self.down) for p in group.parameters()]
        return self.qkv.parameters(), rest


def _num_outputs(module: Any) -> int:
    return int(getattr(module, "base_layer", module).out_features)


def _flat(low_ranks: Sequence[LowRank]) -> list[torch.Tensor | None]:
    """Return all tensors, as autograd wants them: what it knows of, it may drop and make again."""
    return [tensor for part in low_ranks for tensor in (part.low, part.stacked, *part.masks)]


def _unflat(
    tensors: Sequence[torch.Tensor], num_masks: Sequence[int]
) -> tuple[list[LowRank], Sequence[torch.Tensor]]:
    """Return what `_flat` was given, and the tensors behind it."""
    low_ranks = []
    for number in num_masks:
        low, stacked, *masks = tensors[: 2 + number]
        low_ranks.append(LowRank(low, stacked, tuple(masks)))
        tensors = tensors[2 + number :]
    return low_ranks, tensors


class _Attend(torch.autograd.Function):
    """x -> q, k, v, x; the last so that the residual's gradient is added inside the norm's."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, rope: Rope, training: bool, *parameters: Any
    ) -> tuple[torch.Tensor, ...]:
        qkv, low_rank = layer.project(x, parameters, training=training)
        ctx.layer, ctx.rope, ctx.sizes = layer, rope, [len(low_rank.masks)]
        ctx.save_for_backward(x, qkv, *_flat([low_rank]), *parameters)
        return *layer.turned(qkv, rope), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q_grad, k_grad, v_grad, residual = grads
        x, qkv, *rest = ctx.saved_tensors
        (low_rank,), parameters = _unflat(rest, ctx.sizes)
        layer: Layer = ctx.layer
        heads = qkv.view(len(qkv), -1, layer.head_width)
        num_qk = layer.num_q + layer.num_k
        heads_grad = torch.empty_like(heads)
        turn = layer.norm_rope(ctx.rope)
        kernels.norm_rope_backward(heads[:, :num_qk], turn, q_grad, k_grad, heads_grad[:, :num_qk])
        heads_grad[:, num_qk:] = v_grad
        grad = heads_grad.flatten(1)
        normal_grad, low_grad = layer.qkv.pull_back(
            grad, low_rank, parameters, needs_input=ctx.needs_input_grad[0]
        )
        normal = kernels.rms_norm(x, layer.norm.weight, layer.eps)
        gradients = layer.qkv.gradients(normal, grad, low_grad, low_rank, parameters)
        x_grad = None
        if normal_grad is not None:
            x_grad = kernels.rms_norm_backward(
                x, layer.norm.weight, layer.eps, normal_grad, residual
            )
        return x_grad, None, None, None, *gradients


class _Finish(torch.autograd.Function):
    """Attention's result and x -> the layer's result."""

    @staticmethod
    def forward(
        ctx: Any, attended: torch.Tensor, x: torch.Tensor, layer: Layer, training: bool,
        *parameters: Any,
    ) -> torch.Tensor:  # fmt: skip
        result, middle, gate_up, low_ranks = layer.finish(
            attended, x, parameters, training=training
        )
        ctx.layer, ctx.sizes = layer, [len(part.masks) for part in low_ranks]
        ctx.save_for_backward(attended, middle, gate_up, *_flat(low_ranks), *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        grad = grad.contiguous()
        attended, middle, gate_up, *rest = ctx.saved_tensors
        layer: Layer = ctx.layer
        low_ranks, parameters = _unflat(rest, ctx.sizes)
        outs, gates, downs = layer.split(parameters)
        active_grad, down_low = layer.down.pull_back(grad, low_ranks[2], downs)
        assert active_grad is not None
        active = kernels.swiglu_backward(gate_up, active_grad)  # gate_up is its own gradient now
        down_grads = layer.down.gradients(active, grad, down_low, low_ranks[2], downs)
        normal_grad, gate_low = layer.gate_up.pull_back(gate_up, low_ranks[1], gates)
        assert normal_grad is not None
        normal = kernels.rms_norm(middle, layer.middle_norm.weight, layer.eps)
        gate_grads = layer.gate_up.gradients(normal, gate_up, gate_low, low_ranks[1], gates)
        middle_grad = kernels.rms_norm_backward(
            middle, layer.middle_norm.weight, layer.eps, normal_grad, grad
        )
        attended_grad, out_low = layer.out.pull_back(middle_grad, low_ranks[0], outs)
        out_grads = layer.out.gradients(attended, middle_grad, out_low, low_ranks[0], outs)
        return attended_grad, middle_grad, None, None, *out_grads, *gate_grads, *down_grads


def train_layer(
    layer: Layer, x: torch.Tensor, rope: Rope, segments: Segments, training: bool
) -> torch.Tensor:
    """Return the layer's result (N, H) with its graph; dropout drops where `training`."""
    first, rest = layer.parameters()
    q, k, v, x = _Attend.apply(x, layer, rope, training, *first)  # type: ignore[no-untyped-call]
    attended = attend(q, k, v, segments, layer.scaling)
    result: torch.Tensor = _Finish.apply(attended, x, layer, training, *rest)  # type: ignore[no-untyped-call]
    return result
