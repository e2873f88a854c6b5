"""Any family's language model while it trains: its own modules, replayed as CUDA graphs.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from medvqa.fast.graphs import MAX_TOKENS, Graphs
from medvqa.models.loaded import LoadedModel

PLAIN_LAYERS = {"full_attention", "sliding_attention"}  # others may ask the GPU for values
LENGTHS = 32  # a batch is padded to a multiple, so that few shapes occur


class LanguageModel:
    """Stands for the `forward` of a loaded model's decoder.

    Attributes:
        is_captured: Whether training passes become CUDA graphs.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._module = loaded.inner.get_decoder()
        self._forward = self._module.forward
        self._config = self._module.config
        layers = set(getattr(self._config, "layer_types", None) or ())
        self._has_windows = "sliding_attention" in layers
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        drops = any(
            getattr(module, "p", 0.0) > 0.0
            for name, module in self._module.named_modules()
            if isinstance(module, torch.nn.Dropout) and "lora_dropout" in name
        )
        checkpoints = any(
            getattr(module, "gradient_checkpointing", False) for module in self._module.modules()
        )
        self.is_captured = (
            loaded.device.type == "cuda"
            and loaded.has_frozen_vision
            and layers <= PLAIN_LAYERS
            and not drops
            and not checkpoints
            and len(parameters) == len(loaded.trainable)
        )
        self.graphs = Graphs(parameters)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the module's calls come here."""
        if not self.is_captured:
            yield
            return
        before = vars(self._module).get("forward")
        self._module.forward = self
        try:
            yield
        finally:
            if before is None:
                del self._module.forward
            else:
                self._module.forward = before

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what the module returns."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        if arguments or not self._is_usual(options.get("inputs_embeds")):
            return self._forward(*arguments, **options)
        mask = options.get("attention_mask")
        if not isinstance(mask, dict) and getattr(mask, "ndim", 2) != 4:
            if self._has_windows:  # the module would take one mask for both kinds of layers
                return self._forward(*arguments, **options)
            options["attention_mask"] = self._causal(options)
        leaves, tree = torch.utils._pytree.tree_flatten(options)
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        constants = [None if n in places else repr(leaf) for n, leaf in enumerate(leaves)]

        def hidden(*tensors: torch.Tensor) -> torch.Tensor:
            own = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                own[place] = tensor
            output = self._forward(**torch.utils._pytree.tree_unflatten(own, tree))
            result: torch.Tensor = output.last_hidden_state
            return result

        key = (str(tree), tuple(constants))
        result = self.graphs.run(hidden, [leaves[place] for place in places], key)
        return BaseModelOutputWithPast(last_hidden_state=result)

    def _is_usual(self, embeddings: torch.Tensor | None) -> bool:
        if embeddings is None or embeddings.requires_grad or not torch.is_grad_enabled():
            return False
        return embeddings.shape[:2].numel() <= MAX_TOKENS

    def _causal(self, options: dict[str, Any]) -> torch.Tensor:
        """Return the mask (B, 1, T, T) that the module would make, without asking for values."""
        from transformers.masking_utils import create_causal_mask

        mask: torch.Tensor = create_causal_mask(
            self._config,
            options["inputs_embeds"],
            options.get("attention_mask"),
            None,  # no cache; releases differ in the name
            position_ids=options.get("position_ids"),
            allow_is_causal_skip=False,
        )
        return mask

    def padded(
        self, batch: dict[str, torch.Tensor], fill: dict[str, int]
    ) -> dict[str, torch.Tensor]:
        """Return the batch with columns added on the right up to a multiple of `LENGTHS`.

        Args:
            batch: Every tensor with the shape of `input_ids`, (B, T), is padded.
            fill: Values of the new columns by name; zero otherwise.
        """
        shape = batch["input_ids"].shape
        missing = -shape[1] % LENGTHS
        return {
            name: torch.nn.functional.pad(tensor, (0, missing), value=fill.get(name, 0))
            if tensor.shape == shape
            else tensor
            for name, tensor in batch.items()
        }

    @property
    def captured_bytes(self) -> int:
        """GPU memory that captured passes keep for later steps, also of the next run."""
        return self.graphs.num_bytes
