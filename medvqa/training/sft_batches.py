"""Examples as batches of TRL's own collator, or Unsloth's, and how many tokens they have."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from medvqa.config.model import Backend
from medvqa.config.training import LossOn
from medvqa.data.example import Example
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.prompt import conversation
from medvqa.models.sample import IGNORED


class SftBatches:
    """Collates examples as the library's user would, and counts their tokens."""

    def __init__(self, loaded: LoadedModel, encoder: Encoder, loss_on: LossOn) -> None:
        self._loaded, self._encoder = loaded, encoder
        self._on_answer = loss_on is LossOn.answer
        # Supervised and all tokens of each batch; TRL's loader is ahead of the steps.
        self._counts: deque[tuple[int, int]] = deque()

    def collate(self, examples: Sequence[Example]) -> Any:
        """Return the library's batch; no label stands on an image token."""
        processor = self._encoder.processor
        if self._loaded.backend is Backend.unsloth:
            from unsloth.trainer import UnslothVisionDataCollator

            collator = UnslothVisionDataCollator(self._loaded.model, processor, 0, resize="max")
        else:
            from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

            collator = DataCollatorForVisionLanguageModeling(
                processor, completion_only_loss=self._on_answer
            )
        prompt = self._encoder.prompt_config
        batch = collator(
            [conversation(e, answer_apart=self._on_answer, prompt=prompt) for e in examples]
        )
        is_image = batch["input_ids"] == self._encoder.image_token_id
        batch["labels"].masked_fill_(is_image, IGNORED)
        counts = int((batch["labels"] != IGNORED).sum()), int(batch["attention_mask"].sum())
        self._counts.append(counts)
        return batch

    def counted(self, num_batches: int) -> tuple[int, int]:
        """Return the supervised and all tokens of the next batches, once."""
        counts = [self._counts.popleft() for _ in range(num_batches)]
        return sum(own for own, _ in counts), sum(every for _, every in counts)
