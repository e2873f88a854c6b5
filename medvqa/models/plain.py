"""The plain engine: loss and answers by transformers' own modules, the reference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample

if TYPE_CHECKING:
    import torch


class PlainEngine:
    """Computes padded batches with the loaded model as it is.

    Attributes:
        adapts_in_compute_type: Whether the adapter may compute in the model's type.
    """

    adapts_in_compute_type = False

    def __init__(self, loaded: LoadedModel, encoder: Encoder) -> None:
        self._loaded = loaded
        self._encoder = encoder

    def loss(self, samples: Sequence[Sample], num_answer_tokens: int) -> "torch.Tensor":
        """Return the answer tokens' summed cross-entropy over `num_answer_tokens`."""
        batch = self._on_device(self._encoder.training_batch(samples))
        with self._loaded.autocast():
            loss: torch.Tensor = self._loaded.model(
                **batch, num_items_in_batch=num_answer_tokens
            ).loss
        return loss

    def answer(self, samples: Sequence[Sample], max_new_tokens: int) -> "torch.Tensor":
        """Return new tokens (B, N) on the CPU by transformers' own greedy loop."""
        batch = self._on_device(self._encoder.generation_batch(samples))
        with self._loaded.autocast():
            output = self._loaded.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                # Qwen2-VL's own settings sample and penalise repetition; greedy means greedy.
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                repetition_penalty=1.0,
                pad_token_id=self._encoder.pad_token_id,
                eos_token_id=self._loaded.processor.tokenizer.eos_token_id,
            )
        # Only the new tokens: the prompt never leaks into the answer.
        new: torch.Tensor = output[:, batch["input_ids"].shape[1] :].cpu()
        return new

    def _on_device(self, batch: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        return {name: tensor.to(self._loaded.device) for name, tensor in batch.items()}
