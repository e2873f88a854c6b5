"""Qwen-VL's language model over packed sequences: the decoder layer, forward and backward, by hand.

The layer is Qwen2-VL's and Qwen3-VL's as transformers computes it (RMSNorm, rotary attention with
grouped queries, gated MLP, LoRA as in PEFT), on the loaded model's own weights. Sequences lie one
behind the other without padding; products, sums and norms are fused where that saves a pass over
memory, and nothing is kept for the backward pass that is cheap to compute again. A GPU in bfloat16
uses PyTorch's flash attention, anything else its padded equivalent. Shapes: N tokens of all
sequences, H width, S sequences, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from medvqa.fast import kernels
from medvqa.fast.projection import Group, Kept
from medvqa.models.loaded import LoadedModel


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of every token, (N, D / 2) each."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Segments:
    """Which keys each query sees: its own sequence's, up to itself.

    Attributes:
        lengths: Tokens of each sequence that ask, on the host.
        starts: (S + 1,) where they begin, int32.
        used: (S,) keys of each sequence, int32; None where they are the asking tokens themselves.
        longest: The most keys of a sequence.
        room: Rows that the cache keeps for a sequence; 0 without a cache.
    """

    lengths: Sequence[int]
    starts: torch.Tensor
    used: torch.Tensor | None = None
    longest: int = 0
    room: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        """Return sequences that see themselves."""
        return cls(lengths, _starts(lengths, device), longest=max(lengths))


def _starts(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    total = torch.tensor([0, *lengths]).cumsum(0)
    return total.to(device, torch.int32, non_blocking=True)


class Layer:
    """One decoder layer's weights."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.norm, self.middle_norm = module.input_layernorm, module.post_attention_layernorm
        self.eps = float(self.norm.variance_epsilon)
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)
        self.head_width = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.qkv = Group([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Group([attention.o_proj])
        self.gate_up = Group([mlp.gate_proj, mlp.up_proj])
        self.down = Group([mlp.down_proj])
        groups = int(attention.num_key_value_groups)
        self.num_k = _num_outputs(attention.k_proj) // self.head_width
        self.num_q = self.num_k * groups

    @property
    def head_norms(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Weights of the queries' and the keys' norm, which Qwen2-VL has not."""
        if self.q_norm is None or self.k_norm is None:
            return None, None
        return self.q_norm.weight, self.k_norm.weight

    def turned(self, qkv: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, ...]:
        """Return q, k and v, (N, heads, D), ready for attention."""
        heads = qkv.view(len(qkv), -1, self.head_width)
        num_qk = self.num_q + self.num_k
        qk = kernels.norm_rope(
            heads[:, :num_qk], *self.head_norms, self.eps, rope.cos, rope.sin, self.num_q
        )
        return qk[:, : self.num_q], qk[:, self.num_q :], heads[:, num_qk:]

    def project(
        self, x: torch.Tensor, parameters: Sequence[torch.Tensor], *, training: bool
    ) -> tuple[torch.Tensor, Kept]:
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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[Kept, Kept, Kept]]:
        """Return the layer's result, and what its backward pass needs."""
        outs, gates, downs = self.split(parameters)
        middle, kept_out = self.out.forward(attended, outs, training=training)
        middle += x
        normal = kernels.rms_norm(middle, self.middle_norm.weight, self.eps)
        gate_up, kept_gate = self.gate_up.forward(normal, gates, training=training)
        result, kept_down = self.down.forward(kernels.swiglu(gate_up), downs, training=training)
        result += middle
        return result, middle, gate_up, (kept_out, kept_gate, kept_down)

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


def _flat(kept: Sequence[Kept]) -> list[torch.Tensor | None]:
    """Return all tensors, as autograd wants them: what it knows of, it may drop and make again."""
    return [tensor for part in kept for tensor in (part.low, part.stacked, *part.masks)]


def _unflat(
    tensors: Sequence[torch.Tensor], num_masks: Sequence[int]
) -> tuple[list[Kept], Sequence[torch.Tensor]]:
    """Return what `_flat` was given, and the tensors behind it."""
    kept = []
    for number in num_masks:
        low, stacked, *masks = tensors[: 2 + number]
        kept.append(Kept(low, stacked, tuple(masks)))
        tensors = tensors[2 + number :]
    return kept, tensors


class _Attend(torch.autograd.Function):
    """x -> q, k, v, x; the last so that the residual's gradient is added inside the norm's."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Layer, rope: Rope, training: bool, *parameters: Any
    ) -> tuple[torch.Tensor, ...]:
        qkv, kept = layer.project(x, parameters, training=training)
        ctx.layer, ctx.rope, ctx.sizes = layer, rope, [len(kept.masks)]
        ctx.save_for_backward(x, qkv, *_flat([kept]), *parameters)
        return *layer.turned(qkv, rope), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q_grad, k_grad, v_grad, residual = grads
        x, qkv, *rest = ctx.saved_tensors
        (kept,), parameters = _unflat(rest, ctx.sizes)
        layer: Layer = ctx.layer
        heads = qkv.view(len(qkv), -1, layer.head_width)
        num_qk = layer.num_q + layer.num_k
        heads_grad = torch.empty_like(heads)
        kernels.norm_rope_backward(
            heads[:, :num_qk], *layer.head_norms, layer.eps, ctx.rope.cos, ctx.rope.sin,
            q_grad, k_grad, heads_grad[:, :num_qk],
        )  # fmt: skip
        heads_grad[:, num_qk:] = v_grad
        grad = heads_grad.flatten(1)
        normal_grad, low_grad = layer.qkv.pull_back(
            grad, kept, parameters, needs_input=ctx.needs_input_grad[0]
        )
        normal = kernels.rms_norm(x, layer.norm.weight, layer.eps)
        gradients = layer.qkv.gradients(normal, grad, low_grad, kept, parameters)
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
        result, middle, gate_up, kept = layer.finish(attended, x, parameters, training=training)
        ctx.layer, ctx.sizes = layer, [len(part.masks) for part in kept]
        ctx.save_for_backward(attended, middle, gate_up, *_flat(kept), *parameters)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        grad = grad.contiguous()
        attended, middle, gate_up, *rest = ctx.saved_tensors
        layer: Layer = ctx.layer
        kept, parameters = _unflat(rest, ctx.sizes)
        outs, gates, downs = layer.split(parameters)
        active_grad, down_low = layer.down.pull_back(grad, kept[2], downs)
        assert active_grad is not None
        active = kernels.swiglu_backward(gate_up, active_grad)  # gate_up is its own gradient now
        down_grads = layer.down.gradients(active, grad, down_low, kept[2], downs)
        normal_grad, gate_low = layer.gate_up.pull_back(gate_up, kept[1], gates)
        assert normal_grad is not None
        normal = kernels.rms_norm(middle, layer.middle_norm.weight, layer.eps)
        gate_grads = layer.gate_up.gradients(normal, gate_up, gate_low, kept[1], gates)
        middle_grad = kernels.rms_norm_backward(
            middle, layer.middle_norm.weight, layer.eps, normal_grad, grad
        )
        attended_grad, out_low = layer.out.pull_back(middle_grad, kept[0], outs)
        out_grads = layer.out.gradients(attended, middle_grad, out_low, kept[0], outs)
        return attended_grad, middle_grad, None, None, *out_grads, *gate_grads, *down_grads


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    """Return attention's result, (N, heads * D).

    Args:
        q: (N, heads, D), all sequences one behind the other.
        k: (N, groups, D) as `q`, or (S * room, groups, D) from a cache.
        v: As `k`.
        segments: Which belongs to which. A sequence's last query sees all its keys, the one
            before all but one, and so on.
        scaling: Factor of the products.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        starts = segments.starts
        keys = starts
        if segments.room:
            keys = torch.arange(len(starts), device=q.device, dtype=torch.int32) * segments.room
        # PyTorch's varlen_attn is this with fewer arguments, and which it has differs by version.
        output = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, keys, max(segments.lengths), segments.longest, 0.0, True, False,
            scale=scaling, seqused_k=segments.used,
        )[0]  # fmt: skip
        return output.flatten(1)  # type: ignore[no-any-return]
    return _attend_padded(q, k, v, segments, scaling)


def _attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    alike = len(set(segments.lengths)) == 1
    lengths = torch.tensor(segments.lengths, device=q.device)
    padded_q = _padded(q, segments.lengths)
    asking = torch.arange(padded_q.shape[1], device=q.device)
    seen: torch.Tensor | None = None
    if segments.room:
        assert segments.used is not None
        shape = (len(lengths), segments.room, *k.shape[1:])
        padded_k, padded_v = (t.view(shape)[:, : segments.longest] for t in (k, v))
        # The last query stands at its sequence's last key.
        stands = asking[None, :] + (segments.used.long() - lengths)[:, None]  # (S, queries)
        keys = torch.arange(padded_k.shape[1], device=q.device)
        seen = (keys[None, None, :] <= stands[:, :, None])[:, None]
    else:
        padded_k, padded_v = _padded(k, segments.lengths), _padded(v, segments.lengths)
    output = torch.nn.functional.scaled_dot_product_attention(
        padded_q.transpose(1, 2),
        padded_k.transpose(1, 2),
        padded_v.transpose(1, 2),
        attn_mask=seen,
        is_causal=seen is None,  # what stands behind a sequence's end is dropped below
        scale=scaling,
        enable_gqa=True,
    ).transpose(1, 2)
    if alike:
        return output.reshape(len(q), -1)
    return output[asking[None, :] < lengths[:, None]].flatten(1)


def _padded(x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return (S, longest, ...) with zeros behind the end of each sequence."""
    if len(set(lengths)) == 1:
        return x.view(len(lengths), lengths[0], *x.shape[1:])
    return torch.nn.utils.rnn.pad_sequence(
        list(x.split_with_sizes(list(lengths))), batch_first=True
    )


@dataclass(frozen=True)
class Packed:
    """The input of the first layer.

    Attributes:
        x: (N, H) embeddings of tokens and pictures, all sequences one behind the other.
        positions: (3, N): time, height and width.
        lengths: Of each sequence.
        picture_rows: (M,) tokens that stand for pictures.
        deep: (M, H) each: Qwen3-VL's features of middle vision layers, which are added to the
            first decoder layers' results (Meng et al., DeepStack, NeurIPS 2024).
    """

    x: torch.Tensor
    positions: torch.Tensor
    lengths: Sequence[int]
    picture_rows: torch.Tensor | None = None
    deep: Sequence[torch.Tensor] = ()


class Decoder:
    """The language model's layers and last norm, on the loaded model's own weights."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._text = loaded.inner.model.language_model
        self.layers = [Layer(module) for module in self._text.layers]
        self._checkpoints = any(
            getattr(module, "gradient_checkpointing", False) for module in self._text.layers
        )

    def train(self, packed: Packed, *, training: bool) -> torch.Tensor:
        """Return the last layer's result (N, H), before the last norm, with its graph.

        Args:
            packed: The input.
            training: Whether dropout drops.
        """
        x = packed.x
        rope = self._rope(packed)
        segments = Segments.of(packed.lengths, x.device)
        for number, layer in enumerate(self.layers):
            arguments = (layer, x, rope, segments, training)
            if self._checkpoints:
                x = checkpoint(_train_layer, *arguments, use_reentrant=False)
            else:
                x = _train_layer(*arguments)
            x = _with_deep(x, packed, number)
        return x

    def answer(
        self, packed: Packed, cache: "Cache", segments: Segments, write: "Write"
    ) -> torch.Tensor:
        """Return the last layer's result (N, H); keys and values are left in the cache.

        Args:
            packed: The input.
            cache: Of all sequences.
            segments: What is seen; without `used`, the tokens see themselves alone.
            write: Which rows of the cache are filled.
        """
        x = packed.x
        rope = self._rope(packed)
        for number, layer in enumerate(self.layers):
            first, rest = cache.parameters[number]
            qkv, _ = layer.project(x, first, training=False)
            q, k, v = layer.turned(qkv, rope)
            stored_k, stored_v = cache.put(number, k, v, write)
            if segments.used is not None:
                k, v = stored_k, stored_v
            attended = attend(q, k, v, segments, layer.scaling)
            x = _with_deep(layer.finish(attended, x, rest, training=False)[0], packed, number)
        return x

    def last_norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last norm of the rows that are asked for."""
        result: torch.Tensor = self._text.norm(x)
        return result

    def _rope(self, packed: Packed) -> Rope:
        cos, sin = self._text.rotary_emb(packed.x.unsqueeze(0), packed.positions.unsqueeze(1))
        half = cos.shape[-1] // 2
        return Rope(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


@dataclass(frozen=True)
class Write:
    """Where keys and values of new tokens go.

    Attributes:
        target: Rows of the cache.
        source: The token for each; None for all tokens in order.
    """

    target: torch.Tensor
    source: torch.Tensor | None = None


class Cache:
    """Keys and values of all layers: `room` rows a sequence."""

    def __init__(self, decoder: Decoder, num_sequences: int, room: int, like: torch.Tensor) -> None:
        # In the type of computation once, not in every step.
        self.parameters = [
            tuple([p.to(like.dtype) for p in part] for part in layer.parameters())
            for layer in decoder.layers
        ]
        self._stored = [
            like.new_zeros((2, num_sequences * room, layer.num_k, layer.head_width))
            for layer in decoder.layers
        ]

    def put(
        self, number: int, k: torch.Tensor, v: torch.Tensor, write: Write
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values; return all of the layer."""
        keys, values = self._stored[number].unbind()
        if write.source is not None:
            k, v = k[write.source], v[write.source]
        keys.index_copy_(0, write.target, k)
        values.index_copy_(0, write.target, v)
        return keys, values


def _with_deep(x: torch.Tensor, packed: Packed, number: int) -> torch.Tensor:
    if number >= len(packed.deep) or packed.picture_rows is None:
        return x
    return x.index_add(0, packed.picture_rows, packed.deep[number].to(x.dtype))


def _train_layer(
    layer: Layer, x: torch.Tensor, rope: Rope, segments: Segments, training: bool
) -> torch.Tensor:
    first, rest = layer.parameters()
    q, k, v, x = _Attend.apply(x, layer, rope, training, *first)  # type: ignore[no-untyped-call]
    attended = attend(q, k, v, segments, layer.scaling)
    result: torch.Tensor = _Finish.apply(attended, x, layer, training, *rest)  # type: ignore[no-untyped-call]
    return result
