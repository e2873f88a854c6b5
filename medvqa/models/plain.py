"""The plain engine: loss and answers by transformers' own modules, the reference."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from medvqa.config.model import Backend
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import IGNORED, Decoded, Sample

if TYPE_CHECKING:
    import torch


class PlainEngine:
    """Computes padded batches with the loaded model as it is.

    Attributes:
        adapts_in_compute_type: Whether the adapter may compute in the model's type.
    """

    def __init__(self, loaded: LoadedModel, encoder: Encoder, language_model: Any = None) -> None:
        """Prepare the engine.

        Args:
            loaded: The model.
            encoder: Of its inputs.
            language_model: Replays the decoder's training passes, such as
                `medvqa.fast.language_model.LanguageModel`; None computes them each time.
        """
        self._loaded = loaded
        captured = language_model is not None and language_model.is_captured
        self._language_model = language_model if captured else None
        self._encoder = encoder
        # With Qwen, this engine is the reference for the fused one: it computes as PEFT does.
        self.adapts_in_compute_type = (
            encoder.encodes_batches and loaded.backend is Backend.transformers
        )
        # Unsloth's forward computes its own loss.
        parameters = inspect.signature(loaded.inner.forward).parameters
        self._selects_logits = (
            loaded.backend is Backend.transformers and "logits_to_keep" in parameters
        )
        # Keys and values are kept for later tokens otherwise, of which training has none.
        self._options = {"use_cache": False} if loaded.backend is Backend.transformers else {}

    def loss(
        self, samples: Sequence[Sample], num_answer_tokens: "int | torch.Tensor"
    ) -> "torch.Tensor":
        """Return the answer tokens' summed cross-entropy over `num_answer_tokens`.

        Where the model allows it, logits are computed only in columns that predict an answer token
        of some row. With a large vocabulary, the other columns take more memory than all layers.
        """
        import torch

        batch = self._encoder.training_batch(samples)
        if self._language_model is not None:
            fill = {"input_ids": self._encoder.pad_token_id, "labels": IGNORED}
            batch = self._language_model.padded(batch, fill)
        if not self._selects_logits:
            with self._decoding():
                whole: torch.Tensor = self._loaded.model(
                    **self._on_device(batch), **self._options, num_items_in_batch=num_answer_tokens
                ).loss
            return whole
        logits, targets = self._answer_logits(batch)
        total = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / num_answer_tokens

    def log_probabilities(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the log-probability of each answer token, the end of the turn included."""
        logits, targets = self._answer_logits(self._encoder.training_batch(samples))
        chosen = logits.float().log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return [
            row[is_answer].tolist()
            for row, is_answer in zip(chosen, targets != IGNORED, strict=True)
        ]

    def _answer_logits(
        self, batch: "dict[str, torch.Tensor]"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return logits (B, T, V) and targets (B, T) of the columns that predict an answer token.

        Where the model allows it, only these logits are computed.
        """
        labels = batch.pop("labels")
        columns = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]
        selected = {"logits_to_keep": columns} if self._selects_logits else {}
        inputs = self._on_device({**batch, **selected})
        with self._decoding():
            logits = self._loaded.model(**inputs, **self._options).logits
        targets = labels[:, columns + 1].to(self._loaded.device)
        return (logits if selected else logits[:, columns]), targets

    def pass_bytes(self, num_tokens: int, *, recomputes: bool) -> None:
        """Return None: what a pass of any family's modules takes is unknown."""

    def release_memory(self) -> bool:
        """Give back what only saves time; return whether there was anything."""
        return self._language_model is not None and bool(self._language_model.graphs.forget())

    def keep_one_length(self) -> bool:
        """Return False: batches of few lengths occur here anyway."""
        return False

    def stop_capturing(self) -> bool:
        """Capture no pass from now on; return whether that is new."""
        return self._language_model is not None and bool(self._language_model.graphs.stop())

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes layers again."""
        return self._loaded.recomputes

    def recompute_layers(self) -> bool:
        """Keep only the layers' inputs for the backward pass; return whether that is new."""
        inner = self._loaded.inner
        is_possible = self._loaded.backend is Backend.transformers
        is_possible &= bool(getattr(inner, "supports_gradient_checkpointing", False))
        if not is_possible or self._loaded.recomputes:
            return False
        self._loaded.recompute_layers()
        self._language_model = None
        return True

    def answer(self, samples: Sequence[Sample], max_new_tokens: int) -> Decoded:
        """Return new tokens and their log-probabilities by transformers' own greedy loop."""
        import torch

        chances: list[torch.Tensor] = []
        first: list[torch.Tensor] = []

        def record(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logprobs = scores.float().log_softmax(dim=-1)
            first.extend([] if first else [logprobs])
            chances.append(logprobs.max(dim=-1).values)  # greedy: the largest is taken
            return scores

        batch = self._on_device(self._encoder.generation_batch(samples))
        with self._loaded.autocast():
            output = self._loaded.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                logits_processor=[record],
                do_sample=False,
                num_beams=1,
                # Qwen2-VL's own settings sample and penalise repetition; greedy means greedy.
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                repetition_penalty=1.0,
                pad_token_id=self._encoder.pad_token_id,
                eos_token_id=self._encoder.end_token_id,
            )
        # Only the new tokens: the prompt never leaks into the answer.
        new = output[:, batch["input_ids"].shape[1] :].cpu()
        logprobs = torch.stack(chances, dim=1).cpu()
        ends = (new == self._encoder.end_token_id).cumsum(dim=1)
        is_behind_end = (ends - (new == self._encoder.end_token_id).long()) > 0
        return Decoded(new, logprobs.masked_fill(is_behind_end, 0.0), first[0])

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        replaying = (
            nullcontext() if self._language_model is None else self._language_model.training()
        )
        with self._loaded.autocast(), replaying:
            yield

    def _on_device(self, batch: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        device = self._loaded.device
        if device.type != "cuda":
            return {name: tensor.to(device) for name, tensor in batch.items()}
        return {
            name: tensor.pin_memory().to(device, non_blocking=True)
            for name, tensor in batch.items()
        }
