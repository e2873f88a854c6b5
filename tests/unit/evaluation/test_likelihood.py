"""Candidates are compared by the model's own probabilities, checked against a few plain lines."""

from dataclasses import replace

import pytest
import torch

from medvqa.config.evaluation import BertScoreConfig, Decoding, EvaluationConfig, Scoring
from medvqa.evaluation.evaluate import to_predictions
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.likelihood import Likelihood, by_likelihood, likelihoods
from medvqa.evaluation.score import score_predictions

OPTIONS = ("left lung", "right", "both of the lungs")


def plain_log_probabilities(loaded, encoder, example, text):
    """Compute each token alone, one forward pass per token, without batches or labels."""
    sample = encoder.encode(replace(example, answers=(text,)))
    batch = encoder.generation_batch([sample])
    tokens = [t for t in sample.answer_ids if t != encoder.end_token_id]
    values = []
    for count, token in enumerate(tokens):
        ids = torch.tensor([[*sample.prompt_ids, *tokens[:count]]])
        extra = {n: v for n, v in batch.items() if n not in ("input_ids", "attention_mask")}
        extra.pop("mm_token_type_ids", None)
        with torch.inference_mode():
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}
            if "mm_token_type_ids" in batch:
                is_image = (ids == encoder.image_token_id).long()
                inputs["mm_token_type_ids"] = is_image
            logits = loaded.model(**inputs).logits[0, -1].float()
        values.append(float(torch.log_softmax(logits, -1)[token]))
    return values


@pytest.mark.parametrize("decoding", [Decoding.plain, Decoding.shared_prefix])
def test_options_have_the_probabilities_of_a_plain_computation(tiny, encoder, phantoms, decoding):
    example = replace(phantoms[0], options=OPTIONS, answers=("right",))
    (likelihood,) = likelihoods(tiny, encoder, [example], batch_size=2, decoding=decoding)
    plain = [plain_log_probabilities(tiny, encoder, example, text) for text in OPTIONS]
    assert likelihood.values["sum"] == pytest.approx([sum(row) for row in plain], abs=1e-4)
    means = [sum(row) / len(row) for row in plain]
    assert likelihood.values["mean"] == pytest.approx(means, abs=1e-4)
    letters = [plain_log_probabilities(tiny, encoder, example, letter)[0] for letter in "ABC"]
    assert likelihood.values["letter"] == pytest.approx(letters, abs=1e-4)
    # The highest log-probability, which is the lowest loss.
    assert likelihood.answer.text == OPTIONS[means.index(max(means))]


def test_shared_prefixes_and_batch_sizes_leave_every_likelihood_as_it_is(tiny, encoder, phantoms):
    examples = [
        replace(e, options=OPTIONS, answers=("right",)) if n % 2 else replace(e, answers=("no",))
        for n, e in enumerate(phantoms[:6])
    ]
    results = [
        likelihoods(tiny, encoder, examples, batch_size=size, decoding=decoding)
        for size, decoding in (
            (1, Decoding.plain), (16, Decoding.plain), (1, Decoding.shared_prefix),
            (5, Decoding.shared_prefix), (64, Decoding.shared_prefix),
        )
    ]  # fmt: skip
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.answer.text == two.answer.text
            for name, values in one.values.items():
                assert two.values[name] == pytest.approx(values, abs=1e-4)


def test_the_mean_decides_where_the_sum_would_choose_the_shorter_option():
    values = {"sum": (-2.0, -3.0), "mean": (-2.0, -1.0), "letter": (-1.0, -9.0)}
    result = Likelihood(candidates=("ct", "magnetic resonance"), decided_by="mean", values=values)
    assert result.answer.text == "magnetic resonance"


def test_yes_and_no_are_compared_and_open_questions_are_generated(tiny, encoder, phantoms):
    closed = replace(phantoms[0], answers=("no",))
    opened = replace(phantoms[1], answers=("liver",))
    config = EvaluationConfig(
        scoring=Scoring.likelihood, max_new_tokens=2, bertscore=BertScoreConfig(enabled=False)
    )
    answers = by_likelihood(tiny, encoder, [opened, closed], config, "")
    yes, no = answers[1].likelihood["first_token"]
    assert answers[1].text == ("yes" if yes >= no else "no")
    assert answers[0].likelihood is None
    plain = [plain_log_probabilities(tiny, encoder, closed, text)[0] for text in ("yes", "no")]
    assert [yes, no] == pytest.approx(plain, abs=1e-4)


def test_the_prompt_shows_letters_and_the_answer_is_read_as_the_option(encoder, phantoms):
    example = replace(phantoms[0], options=OPTIONS, answers=("right",), answer_type="closed")
    text = encoder.processor.tokenizer.decode(encoder.encode(example).prompt_ids)
    for line in ("A. left lung", "B. right", "C. both of the lungs"):
        assert line in text
    config = EvaluationConfig(bootstrap_samples=10, bertscore=BertScoreConfig(enabled=False))
    texts = ("B", "it is on the right", "rigth")
    rows = to_predictions([example] * 3, [Answer(text=text) for text in texts])
    scored = score_predictions(rows, config, device="cpu")
    assert [item.exact_match for item in scored.items] == [True, True, True]
    assert [item.nearest_option for item in scored.items] == [False, False, True]
    assert scored.summary["overall"]["nearest_option"].mean == pytest.approx(1 / 3)
    assert scored.summary["closed"]["closed_accuracy"].mean == 1
