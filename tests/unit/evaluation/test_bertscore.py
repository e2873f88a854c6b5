"""BERTScore with the offline encoder: real weights, real package."""

import pytest

from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig
from medvqa.evaluation.bertscore import _scorer, bert_scores, check_encoder

MINILM = BertScoreConfig()


def test_equal_texts_score_one_and_others_less():
    result = bert_scores(
        [("left lung", ["left lung"]), ("no", ["left lung"])], MINILM, device="cpu"
    )
    assert result.f1[0] == pytest.approx(1, abs=1e-5)
    assert result.f1[1] < 0.8


def test_the_best_reference_counts_and_pairs_are_scored_once():
    pairs = [("ct", ["mri", "ct"]), ("ct", ["ct"]), ("ct", ["mri"])]
    result = bert_scores(pairs, MINILM, device="cpu")
    assert result.num_unique_pairs == 2
    assert result.f1[0] == result.f1[1] > result.f1[2]


def test_scores_do_not_depend_on_their_company():
    # The package gives the first three up to 0.06 less alone than in a batch.
    pairs = [("necrosis", ["PA"]), ("bilateral pleural effusion", ["Left"])]
    pairs += [("decreased muscle bulk", ["Appendix"])]
    pairs += [(f"answer {i}", [f"reference number {i} with more words"]) for i in range(40)]
    together = bert_scores(pairs, MINILM, device="cpu").f1
    alone = [bert_scores([pair], MINILM, device="cpu").f1[0] for pair in pairs[:5]]
    assert together[:5] == pytest.approx(alone, abs=1e-6)


def test_scores_are_those_of_the_package_in_a_padded_batch():
    pairs = [("necrosis", "PA"), ("CT", "mri"), ("no", "the left lower lobe"), ("a" * 90, "b c")]
    scorer = _scorer("minilm", None, False, "cpu")
    longest = "word " * 60
    answers, references = zip(*pairs, (longest, longest), strict=True)
    expected = scorer.score(list(answers), list(references), batch_size=5)[2].tolist()[:-1]
    ours = bert_scores([(text, [other]) for text, other in pairs], MINILM, device="cpu").f1
    assert ours == pytest.approx(expected, abs=1e-6)


def test_an_empty_answer_scores_zero_and_is_counted():
    result = bert_scores([("", ["left"]), ("  ", ["right"])], MINILM, device="cpu")
    assert result.f1 == (0.0, 0.0)
    assert result.num_empty == 2


def test_texts_that_the_encoder_cannot_write_are_left_out_and_counted(caplog):
    # MiniLM writes both answers as [UNK] alone: the package gives them 1.
    pairs = [("左肺", ["肾脏"]), ("left lung", ["left lung"]), ("肺 ct", ["肺 ct"])]
    result = bert_scores(pairs, MINILM, device="cpu")
    assert [score is None for score in result.f1] == [True, False, True]
    assert result.num_unknown == result.record()["num_unknown"] == 2
    assert "leaves out 2 of 3 answers (67 %)" in caplog.text
    assert "multilingual" in caplog.text


def test_the_record_says_what_the_numbers_depend_on():
    record = bert_scores([("a b", ["a b"])], MINILM, device="cpu").record()
    assert (record["model"], record["num_layers"], record["rescale"]) == ("minilm", 6, False)
    assert record["package"].startswith("minilm_L6_no-idf")


@pytest.mark.parametrize(
    ("model", "message"),
    [("nobody/nothing", "neither a directory nor in the local hub cache"), (".", "num_layers")],
)
def test_an_encoder_that_is_not_there_is_refused_early(model, message):
    with pytest.raises(UserError, match=message):
        check_encoder(BertScoreConfig(model=model))
