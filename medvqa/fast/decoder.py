"""Qwen-VL's language model over packed sequences: no padding, no token computed twice.

Shapes: N tokens of all sequences, H width of the model, S sequences, D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from medvqa.config.model import BasePrecision
from medvqa.fast.attention import Segments, attend
from medvqa.fast.graphs import MAX_TOKENS, Graphs, length_bound, padded_length
from medvqa.fast.layer import Layer, Rope, train_layer
from medvqa.models.activations import LayerShapes, kept_bytes
from medvqa.models.loaded import LoadedModel


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

    def deep_rows(self) -> list[torch.Tensor]:
        """Return each of `deep` as (N, H) with zeros where no picture is."""
        if self.picture_rows is None:
            return []
        nothing, rows = torch.zeros_like(self.x), self.picture_rows
        return [nothing.index_copy(0, rows, own.to(self.x.dtype)) for own in self.deep]


class Decoder:
    """The language model's layers and last norm, on the loaded model's own weights.

    Attributes:
        graphs: Its captured training passes.
        pads: Whether training passes are filled up to lengths that occur often.
        recomputes: Whether the backward pass computes each layer's inside again.
        has_dropout: Whether an adapter drops inputs.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._text = loaded.inner.model.language_model
        in_8_bits = loaded.base_precision is BasePrecision.fp8
        self.layers = [Layer(module, in_8_bits=in_8_bits) for module in self._text.layers]
        self.recomputes = loaded.recomputes
        parameters = [p for layer in self.layers for part in layer.parameters() for p in part]
        self.has_dropout = any(layer.has_dropout for layer in self.layers)
        # Else a graph would repeat random numbers, or leave out gradients of its input.
        self._is_fixed = loaded.has_frozen_vision and not self.has_dropout
        self.graphs = Graphs(parameters)
        self._lengths: set[int] = set()
        self._keeps_one_length = False
        self.pads = loaded.device.type == "cuda"  # a CPU gains nothing by equal shapes

    def recompute(self) -> bool:
        """Compute layers again in the backward pass; return whether that is new."""
        is_new = not self.recomputes
        self.recomputes = True
        self.graphs.forget()
        return is_new

    def keep_one_length(self) -> bool:
        """Capture passes of one length, the longest so far; return whether that is new.

        Captured passes hold their memory, so a pass of another length takes as much again.
        """
        is_new = self.pads and self._is_fixed and not self._keeps_one_length
        self._keeps_one_length |= is_new
        return is_new

    def forget_passes(self) -> bool:
        """Give the captured passes' memory back; return whether there were any."""
        self._lengths.clear()
        return self.graphs.forget()

    def num_added_tokens(self, num_tokens: int) -> int:
        """Return how many tokens a training pass should have more, to become a CUDA graph."""
        if not self.pads or not self._is_fixed or num_tokens > MAX_TOKENS:
            return 0
        length = padded_length(num_tokens, self._lengths)
        if self._keeps_one_length:
            length = max(length, *self._lengths, 0)
            if self._lengths != {length}:
                self.forget_passes()
        self._lengths.add(length)
        return length - num_tokens

    def kept_bytes(self, num_tokens: int, *, recomputes: bool) -> int:
        """Return what a forward pass of so many tokens keeps for its backward pass."""
        first, (query, key, mlp) = self.layers[0], self.layers[0].widths
        hidden, size = int(self._text.config.hidden_size), int(first.norm.weight.element_size())
        shapes = LayerShapes(
            hidden=hidden,
            query_width=query,
            key_width=key,
            mlp=mlp,
            has_query_norm=first.q_norm is not None,
        )
        inside = kept_bytes(shapes, "fused", dropout=float(self.has_dropout)) * size // 2
        layers = len(self.layers) * inside
        if recomputes or self.recomputes:  # each layer's input, and one layer at a time anew
            layers = len(self.layers) * hidden * size + inside
        return num_tokens * layers

    def train(self, packed: Packed, *, training: bool) -> torch.Tensor:
        """Return the last layer's result (N, H), before the last norm, with its graph.

        Args:
            packed: The input.
            training: Whether dropout drops.
        """
        x = packed.x
        starts = Segments.of(packed.lengths, x.device).starts
        inputs: tuple[torch.Tensor, ...] = (x, packed.positions, starts, *packed.deep_rows())
        if not x.is_cuda or len(x) not in self._lengths:
            return self._trained(packed.lengths, training, *inputs)
        longest = length_bound(len(x) if self._keeps_one_length else max(packed.lengths))
        inputs = tuple(tensor.detach() for tensor in inputs)
        function = partial(self._trained, [longest], training)
        result: torch.Tensor = self.graphs.run(function, inputs, (longest, training))
        return result

    def _trained(
        self, lengths: Sequence[int], training: bool, *inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return `train`'s result of x, positions, starts of sequences and features to add."""
        x, positions, starts, *deep = inputs
        rope = self._rope(x, positions)
        segments = Segments(lengths, starts, longest=max(lengths))
        for number, layer in enumerate(self.layers):
            arguments = (layer, x, rope, segments, training)
            if self.recomputes:
                x = checkpoint(
                    train_layer,
                    *arguments,
                    use_reentrant=False,
                    preserve_rng_state=self.has_dropout,
                )
            else:
                x = train_layer(*arguments)
            if number < len(deep):
                x = x + deep[number]
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
        rope = self._rope(packed.x, packed.positions)
        for number, layer in enumerate(self.layers):
            first, rest = cache.parameters[number]
            qkv, _ = layer.project(x, first, training=False)
            q, k, v = layer.turned(qkv, rope)
            stored_k, stored_v = cache.put(number, k, v, write)
            if segments.used is not None:
                k, v = stored_k, stored_v
            attended = attend(q, k, v, segments, layer.scaling)
            x = layer.finish(attended, x, rest, training=False)[0]
            if packed.picture_rows is not None and number < len(packed.deep):
                x = x.index_add(0, packed.picture_rows, packed.deep[number].to(x.dtype))
        return x

    def last_norm(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last norm of these rows."""
        result: torch.Tensor = self._text.norm(x)
        return result

    def _rope(self, x: torch.Tensor, positions: torch.Tensor) -> Rope:
        cos, sin = self._text.rotary_emb(x.unsqueeze(0), positions.unsqueeze(1))
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
    """Keys and values of all layers: `room` rows per sequence."""

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
