"""A chat template decides what is learned; where it writes no end of turn, the tokenizer's does."""

from types import SimpleNamespace

import pytest

from medvqa.config.errors import UserError
from medvqa.models.turn import Template
from tests.tiny_models import GLM4V, LLAVA, tiny_tokenizer


def template(text, **options):
    tokenizer = tiny_tokenizer(text, {"image_token": "<image>"}, **{"eos": "</s>", **options})
    return Template(SimpleNamespace(tokenizer=tokenizer, chat_template=text))


def decoded(turns, ids):
    return turns.processor.tokenizer.decode(list(ids))


@pytest.mark.parametrize(("text", "answer"), [(LLAVA, " yes</s>"), (GLM4V, "yes</s>")])
def test_the_end_of_text_ends_the_turn_of_a_template_that_writes_no_end(text, answer):
    turns = template(text)
    turn = turns.turn("Is it round?", "yes", num_images=1)
    assert decoded(turns, turn.answer_ids) == turn.answer == answer
    assert turns.end_token_id == turns.processor.tokenizer.eos_token_id
    assert turn.prompt == turns.prompt("Is it round?", num_images=1)


def test_without_an_end_of_turn_and_an_end_of_text_a_model_is_refused():
    tokenizer = tiny_tokenizer(LLAVA, {}, eos="</s>")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of turn"):
        Template(SimpleNamespace(tokenizer=tokenizer, chat_template=LLAVA))
