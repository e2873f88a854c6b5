"""Training through TRL: the planned order, the same numbers, its own checkpoints."""

from medvqa.config.training import LossOn
from medvqa.training.sft_batches import SftBatches


def test_the_loss_on_text_covers_every_token_but_those_of_images(tiny, encoder, phantoms):
    batch = SftBatches(tiny, encoder, LossOn.text).collate(phantoms[:3])
    supervised = batch["labels"] != -100
    image = batch["input_ids"] == encoder.image_token_id
    assert image.any()
    assert (supervised == (batch["attention_mask"].bool() & ~image)).all()
