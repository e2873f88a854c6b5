"""Batched greedy decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from medvqa.collate import Encoder
from medvqa.example import Example
from medvqa.model import LoadedModel
from medvqa.progress import track


@dataclass(frozen=True)
class Answers:
    """Generated texts in the order of the examples.

    Attributes:
        num_cut: Answers that hit `max_new_tokens` before the end of the turn.
    """

    texts: tuple[str, ...]
    num_cut: int


def generate(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    description: str = "answering",
) -> Answers:
    """Answer every example greedily.

    Prompts are left-padded and sorted by length, so that a batch holds little padding and its
    size changes no answer.
    """
    import torch

    tokenizer = encoder.processor.tokenizer
    texts = [""] * len(examples)
    num_cut = 0
    # Images outweigh words. The longest prompts come first, so that a batch that does not fit
    # in memory fails at the start.
    order = sorted(
        range(len(examples)),
        key=lambda i: (-len(examples[i].images), -len(examples[i].question), i),
    )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    loaded.use_for(training=False)
    with torch.inference_mode(), loaded.autocast():
        for indices in track(batches, description=description):
            samples = [encoder.encode(examples[i]) for i in indices]
            batch = {k: v.to(loaded.device) for k, v in encoder.generation_batch(samples).items()}
            output = loaded.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                # Qwen2-VL's own settings sample and penalise repetition; greedy means greedy.
                temperature=1.0,
                top_p=1.0,
                top_k=50,
                repetition_penalty=1.0,
                pad_token_id=encoder.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            # Only the new tokens: the prompt never leaks into the answer.
            new = output[:, batch["input_ids"].shape[1] :].cpu()
            num_cut += int((new != tokenizer.eos_token_id).all(dim=1).sum())
            decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, text in zip(indices, decoded, strict=True):
                texts[index] = text.strip()
    return Answers(tuple(texts), num_cut)
