"""The first sample as text, exactly as the model receives it."""

import logging
from itertools import groupby
from pathlib import Path

from medvqa.data.example import Example
from medvqa.models.encode import Encoder
from medvqa.models.sample import Sample

log = logging.getLogger(__name__)


def preview(encoder: Encoder, sample: Sample) -> str:
    """Return one sample as text: image tokens counted, the supervised answer between [[ and ]]."""
    decode = encoder.processor.tokenizer.decode
    row = encoder.training_batch([sample])["input_ids"][0].tolist()
    parts = []
    for is_image, group in groupby(
        row[: -len(sample.answer_ids)], encoder.image_token_ids.__contains__
    ):
        tokens = list(group)
        parts.append(f"<{len(tokens)} image tokens>" if is_image else decode(tokens))
    return f"{''.join(parts)}[[{decode(list(sample.answer_ids))}]]"


def write_preview(encoder: Encoder, example: Example, directory: Path) -> None:
    """Write preview.txt, the sample exactly as the model receives it, and log it."""
    text = preview(encoder, encoder.encode(example))
    (directory / "preview.txt").write_text(text + "\n", encoding="utf-8")
    log.info("first sample; the loss is on [[...]] only:\n%s\n", text)
