"""The same mathematics in fewer and larger GPU kernels; see docs/engine.md for what was measured.

What is replaced, in place, on a model of the `transformers` backend: RMSNorm, the adapter's product
and sum, the gated MLP's activation and the rotary embedding by fused kernels; the vision tower's
attention, which transformers runs an image at a time, by one call; features of a picture that
comes again by stored ones; logits of all tokens by those of the answer.
"""

import logging
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.collate import IGNORED
from medvqa.config import Backend
from medvqa.model import VISION_TOWER, LoadedModel

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FEATURES = "_medvqa_features"
VISION_CACHE_BYTES = 4 * 2**30


def accelerate(loaded: LoadedModel) -> list[str]:
    """Replace what can be replaced; return the names of what was, for the record.

    Doing it again changes nothing. The fused kernels need a GPU, the rest runs anywhere.
    """
    if loaded.backend is Backend.unsloth:
        return []  # it has replaced these itself
    done = ["rms_norm", "lora", "answer_logits"]
    for module in loaded.model.modules():
        if hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
            module.forward = types.MethodType(_rms_norm, module)
        elif hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            module.forward = types.MethodType(_lora_linear, module)
    if loaded.device.type == "cuda":
        done += [name for name, replace in _GPU_ONLY.items() if replace(loaded)]
    return done


def _rms_norm(self: Any, hidden_states: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.rms_norm(
        hidden_states, self.weight.shape, self.weight, self.variance_epsilon
    )


def _lora_linear(self: Any, x: "torch.Tensor", *args: Any, **kwargs: Any) -> "torch.Tensor":
    """Return base(x) + scale * B(A(dropout(x))), the sum inside the second product."""
    import torch

    result: torch.Tensor = self.base_layer(x, *args, **kwargs)
    if self.disable_adapters:
        return result
    (name,) = self.active_adapters
    first, second = self.lora_A[name].weight, self.lora_B[name].weight
    low = torch.nn.functional.linear(self.lora_dropout[name](x).to(first.dtype), first)
    total = torch.addmm(
        result.reshape(-1, result.shape[-1]).to(second.dtype),
        low.reshape(-1, low.shape[-1]),
        second.t(),
        alpha=self.scaling[name],
    )
    return total.view(result.shape).to(result.dtype)


def _fused_vision_attention(loaded: LoadedModel) -> bool:
    """Attend to all pictures of a batch in one call, each within itself."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    import torch

    def attend(
        module: Any,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        attention_mask: None,
        *,
        cu_seq_lens_q: "torch.Tensor",
        max_length_q: int,
        scaling: float,
        **_: Any,
    ) -> "tuple[torch.Tensor, None]":
        q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
        starts, longest = cu_seq_lens_q.to(torch.int32), int(max_length_q)
        output = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling)
        return output.unsqueeze(0), None  # type: ignore[union-attr]

    tower = getattr(loaded.inner.model, VISION_TOWER)
    for block in tower.blocks:
        _attend_at_once(block.attn, attend)
    return True


def _attend_at_once(attention: Any, attend: Callable[..., Any]) -> None:
    """Give one vision attention layer the branch that transformers keeps for flash-attn."""
    from importlib import import_module

    source = import_module(type(attention).__module__)

    def forward(
        self: Any,
        hidden_states: "torch.Tensor",
        cu_seqlens: "torch.Tensor",
        position_embeddings: "tuple[torch.Tensor, torch.Tensor]",
        max_seqlen: int | None = None,
        **_: Any,
    ) -> "torch.Tensor":
        length = hidden_states.shape[0]
        qkv = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(1, 0, 2, 3).unbind(0)
        query, key = source.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        longest = max_seqlen or int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
        output, _unused = attend(
            self,
            *(t.to(value.dtype).transpose(0, 1).unsqueeze(0) for t in (query, key, value)),
            None,
            cu_seq_lens_q=cu_seqlens,
            max_length_q=longest,
            scaling=self.scaling,
        )
        result: torch.Tensor = self.proj(output.reshape(length, -1))
        return result

    attention.forward = types.MethodType(forward, attention)


def _fused_mlp_and_rotary(loaded: LoadedModel) -> bool:
    """Take Liger's kernels where the package is there."""
    try:
        from liger_kernel.ops import LigerRopeFunction, LigerSiLUMulFunction
    except ImportError:
        return False
    from importlib import import_module

    layers = loaded.inner.model.language_model.layers
    source = import_module(type(layers[0].self_attn).__module__)
    if hasattr(source, "apply_rotary_pos_emb"):  # Qwen2-VL's multimodal one differs

        def rotate(
            q: "torch.Tensor", k: "torch.Tensor", cos: "torch.Tensor", sin: "torch.Tensor", **_: Any
        ) -> Any:
            return LigerRopeFunction.apply(q, k, cos, sin)

        vars(source)["apply_rotary_pos_emb"] = rotate

    def gated(self: Any, x: "torch.Tensor") -> Any:
        return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))

    for layer in layers:
        layer.mlp.forward = types.MethodType(gated, layer.mlp)
    return True


_GPU_ONLY: dict[str, Callable[[LoadedModel], bool]] = {
    "vision_attention": _fused_vision_attention,
    "liger_rotary_swiglu": _fused_mlp_and_rotary,
}


def compile_layers(loaded: LoadedModel) -> None:
    """Compile the repeated decoder layer; pays after some thousand steps or from a warm cache."""
    for layer in loaded.inner.model.language_model.layers:
        layer.compile(dynamic=True)


def answer_loss(
    loaded: LoadedModel, batch: "dict[str, torch.Tensor]", num_answer_tokens: int
) -> "torch.Tensor":
    """Return the answer tokens' summed cross-entropy over `num_answer_tokens`.

    The value is that of the model's own loss; the logits of the other tokens, which it computes
    and throws away, are never made.

    Args:
        loaded: Model of the `transformers` backend.
        batch: (B, T) tensors on the CPU, so that choosing the positions does not wait for the GPU.
        num_answer_tokens: Of the whole effective batch.
    """
    import torch

    inner = loaded.inner
    labels = batch["labels"][:, 1:]
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns].to(loaded.device)
    position_ids, _ = inner.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )
    inputs = {name: tensor.to(loaded.device) for name, tensor in batch.items() if name != "labels"}
    hidden = inner.model(
        **inputs, position_ids=position_ids.to(loaded.device), use_cache=False
    ).last_hidden_state
    logits = inner.lm_head(hidden[rows.to(loaded.device), columns.to(loaded.device)])
    total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return total / num_answer_tokens


def shared_features(loaded: LoadedModel) -> "VisionCache | None":
    """Return the model's one cache of picture features, for training and answering alike.

    None on a CPU, where a batch's composition changes the last bits and a continued run would no
    longer equal a whole one; and where the vision tower itself is trained.
    """
    if loaded.device.type == "cpu" or not loaded.has_frozen_vision:
        return None
    found = kept_features(loaded)
    if found is None:
        found = VisionCache(loaded, max_bytes=VISION_CACHE_BYTES)
        setattr(loaded.model, FEATURES, found)
    return found


def kept_features(loaded: LoadedModel) -> "VisionCache | None":
    """Return the cache if the model has one by now."""
    found: VisionCache | None = getattr(loaded.model, FEATURES, None)
    return found


class VisionCache:
    """Keeps the vision tower's features of the last pictures on the GPU.

    A data set asks about seven questions an image, and a frozen tower answers the same each time.

    Attributes:
        num_computed: Pictures that went through the tower.
    """

    def __init__(self, loaded: LoadedModel, *, max_bytes: int) -> None:
        self._model = loaded.inner.model
        self._device = loaded.device
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Sequence[torch.Tensor]] = OrderedDict()
        self._waiting: Any = None
        self._compute = self._model.get_image_features
        self.num_computed = 0
        self._model.get_image_features = self._give

    @property
    def num_bytes(self) -> int:
        """GPU memory that the features take."""
        return self._bytes

    def clear(self) -> None:
        """Forget all pictures."""
        self._kept.clear()
        self._bytes, self._waiting = 0, None

    def _give(self, *args: Any, **kwargs: Any) -> Any:
        waiting, self._waiting = self._waiting, None
        return self._compute(*args, **kwargs) if waiting is None else waiting

    def provide(
        self, keys: Sequence[str], pixel_values: "torch.Tensor", grids: "torch.Tensor"
    ) -> None:
        """Make the features of the next forward pass ready.

        Args:
            keys: Identity of each picture of the batch, in order.
            pixel_values: (P, D) patches of all of them, on the CPU.
            grids: (images, 3).
        """
        import torch

        sizes = grids.prod(-1).tolist()
        patches = dict(zip(keys, torch.split(pixel_values, sizes), strict=True))
        missing = [key for key in patches if key not in self._kept]
        if missing:
            grid_of = dict(zip(keys, grids, strict=True))
            with torch.no_grad():
                output = self._compute(
                    torch.cat([patches[key] for key in missing]).to(self._device),
                    torch.stack([grid_of[key] for key in missing]).to(self._device),
                    return_dict=True,
                )
            self._store(missing, output)
        features = []
        for key in keys:
            self._kept.move_to_end(key)
            features.append(self._kept[key])
        self._waiting = types.SimpleNamespace(
            pooler_output=[layers[0] for layers in features],
            deepstack_features=[
                torch.cat(layer) for layer in zip(*(f[1:] for f in features), strict=True)
            ],
        )
        self._evict(len(patches))

    def _store(self, keys: Sequence[str], output: Any) -> None:
        self.num_computed += len(keys)
        pooled = output.pooler_output
        sizes = [len(features) for features in pooled]
        deep = [layer.split(sizes) for layer in getattr(output, "deepstack_features", None) or ()]
        for number, key in enumerate(keys):
            # Copies: a view would keep the whole batch's features alive.
            layers = [pooled[number].clone(), *(layer[number].clone() for layer in deep)]
            self._kept[key] = layers
            self._bytes += sum(layer.nbytes for layer in layers)

    def _evict(self, num_needed: int) -> None:
        while self._bytes > self._max_bytes and len(self._kept) > num_needed:
            _, layers = self._kept.popitem(last=False)
            self._bytes -= sum(layer.nbytes for layer in layers)
