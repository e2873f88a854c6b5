"""Each protocol follows its own rules: by hand, and on real answers with known scores."""

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from medvqa.config.errors import UserError
from medvqa.config.evaluation import ProtocolName
from medvqa.data.example import Prediction
from medvqa.evaluation.predictions import read_predictions
from medvqa.evaluation.protocols.protocol import score_protocol
from medvqa.evaluation.protocols.table import PROTOCOLS
from medvqa.evaluation.score_file import main_score


def row(answer, reference, kind="open", **others):
    return Prediction(
        **{
            "id": "1",
            "question": "q?",
            "references": (reference,),
            "prediction": answer,
            "answer_type": kind,
            "source": "s",
            "split": "test",
            "cluster": "picture",
            **others,
        }
    )


def value(name, metric, *rows, types=None):
    protocol = PROTOCOLS[ProtocolName(name)]
    return score_protocol(protocol, rows, types=types, num_samples=20)[metric].mean


@pytest.mark.parametrize(
    ("name", "metric", "answer", "reference", "kind", "expected"),
    [
        # a mark becomes a space: "x ray" is not "xray"
        ("seed", "EM", "X-ray", "x ray", "open", 1),
        ("seed", "EM", "xray", "x-ray", "open", 0),
        ("seed", "F1", "the left lung", "left", "open", 2 / 3),
        ("seed", "EM (numeric tolerance)", "2.505 cm", "2.5", "open", 1),
        ("seed", "EM (numeric tolerance)", "2.6 cm", "2.5", "open", 0),
        # "no" is a substring of "known"
        ("llava_med", "yes/no accuracy", "It is not known.", "no", "closed", 1),
        ("llava_med", "yes/no accuracy", "There is a lesion", "yes", "closed", 0),
        ("llava_med", "yes/no accuracy", "left lung", "left", "closed", 0),
        ("llava_med", "yes/no accuracy", "left, no doubt", "left", "closed", 1),
        # matches count with the prediction's multiplicity: 2 / (2 + 1)
        ("llava_med", "recall", "lung and lung", "left lung", "open", 2 / 3),
        ("llava_med", "precision", "lung and lung", "left lung", "open", 2 / 3),
        ("llava_med", "exact match score", "lung and lung", "left lung", "open", 1 / 3),
        ("medevalkit", "close acc", "Yes, no nodule", "yes", "closed", 0),
        ("medevalkit", "close acc", "Not seen", "no", "closed", 1),
        ("medevalkit", "close acc", "The answer is yes", "yes", "open", 1),  # always yes/no
        ("medevalkit", "em", "\\boxed{left {lung}}", "left {lung}", "open", 1),
        ("medevalkit", "em", "<answer>Left lung</answer>", "left lung", "open", 1),
        ("medevalkit", "em", "left lung.", "left lung", "open", 0),
        # sets: {lung, and} and {left, lung}
        ("medevalkit", "f1", "lung and lung", "left lung", "open", 0.5),
        ("medevalkit", "bleu1", "left lung", "left lung", "open", 1),
        ("lmms_eval", "exact_match", "The two", "2", "open", 1),
        ("lmms_eval", "slake_accuracy", "Computed (CT)", "computed", "open", 1),
        ("lmms_eval", "slake_accuracy", "X-Ray", "xray", "open", 1),
        ("lmms_eval", "slake_closed_accuracy", "有。", "yes", "closed", 1),
        ("lmms_eval", "yesno_acc", "Answer: well, yes", "yes", "closed", 1),
        ("lmms_eval", "freeform_acc", "It is: left", "left", "open", 1),
        ("substring", "closed accuracy", "a nodule", "no", "closed", 1),
        ("substring", "open accuracy", "in the left lung", "left", "open", 1),
        ("medico", "exact match", "A polyp", "a polyp", "open", 1),
        ("medico", "exact match", "A polyp.", "a polyp", "open", 0),
        # ROUGE-L: longest common subsequence 2 of 3 and 4 words
        ("medico", "rougeL", "one red polyp", "one small red lesion", "open", 4 / 7),
        ("medvqa", "closed acc.", "a nodule", "no", "closed", 0),
        ("medvqa", "unparsable", "a nodule", "no", "closed", 1),
        ("medvqa", "open F1", "lung", "left lung", "open", 2 / 3),
    ],
)
def test_an_answer_is_scored_by_the_protocols_own_rule(
    name, metric, answer, reference, kind, expected
):
    assert value(name, metric, row(answer, reference, kind)) == pytest.approx(expected)


def test_the_best_reference_counts_in_every_protocol():
    one = row("left", "right", references=("right", "left"))
    for name, metric in (("seed", "EM"), ("llava_med", "recall"), ("medevalkit", "em")):
        assert value(name, metric, one) == 1


def test_types_decide_which_questions_are_closed():
    labelled = row("yes", "yes", "open")
    assert value("llava_med", "recall", labelled) == 1
    assert value("llava_med", "yes/no accuracy", labelled, types="yes_no") == 1
    assert value("medevalkit", "close acc", row("left", "left", "closed"), types="labels") == 1


def test_corpus_bleu_is_that_of_sacrebleu_with_an_interval_over_pictures():
    import sacrebleu

    texts = [
        ("a small red polyp is seen here", "a small red polyp is seen"),
        ("no polyp in the upper right part", "a polyp lies in the upper left part"),
    ]
    rows = [row(a, r, cluster=str(i)) for i, (a, r) in enumerate(texts)]
    score = score_protocol(PROTOCOLS[ProtocolName.medico], rows, num_samples=50)["BLEU"]
    answers, references = zip(*texts, strict=True)
    expected = sacrebleu.corpus_bleu(answers, [list(references)], smooth_method="none").score
    assert score.mean == pytest.approx(expected / 100)
    assert score.low < score.mean < score.high


def test_multiple_choice_scores_only_questions_with_options():
    rows = [
        row("B", "right", options=("left", "right")),
        row("?", "left", options=("left", "right")),
    ]
    scores = score_protocol(
        PROTOCOLS[ProtocolName.multiple_choice], [*rows, row("left", "left")], num_samples=20
    )
    assert scores["accuracy"].num_examples == 2
    assert scores["answered by letter"].mean == 0.5
    assert scores["nearest option taken"].mean == 0.5


def real(shared, place, name, types=None):
    answers = read_predictions(shared / "reference" / place).predictions
    return score_protocol(PROTOCOLS[ProtocolName(name)], answers, types=types, num_samples=20)


def test_the_published_rows_own_answers_give_the_published_values(shared):
    scores = real(shared, "medico_agent_seed/qwen3_vl_8b.jsonl", "seed")
    assert scores["EM"].mean == pytest.approx(0.458980, abs=5e-7)
    assert scores["F1"].mean == pytest.approx(0.492943, abs=5e-7)
    assert scores["EM (numeric tolerance)"].mean == pytest.approx(0.4590, abs=5e-5)
    assert scores["EM"].num_examples == 451


@pytest.mark.parametrize(
    ("data", "closed", "recall", "f1", "kit", "num_closed"),
    [("vqa_rad", 66.14, 34.57, 11.15, 50.6, 251), ("slake", 61.97, 44.71, 10.79, 54.1, 355)],
)
def test_real_answers_have_their_known_scores(shared, data, closed, recall, f1, kit, num_closed):
    file = f"llava_med_answers/{data}.jsonl"
    scores = real(shared, file, "llava_med", "yes_no")
    assert 100 * scores["yes/no accuracy"].mean == pytest.approx(closed, abs=0.005)
    assert 100 * scores["recall"].mean == pytest.approx(recall, abs=0.005)
    assert 100 * scores["f1 score"].mean == pytest.approx(f1, abs=0.005)
    assert scores["yes/no accuracy"].num_examples == num_closed
    assert 100 * real(shared, file, "medevalkit")["close acc"].mean == pytest.approx(kit, abs=0.05)


def test_a_gain_is_paired_and_differs_by_rule():
    wordy = [row("It is not known", "no", "closed", cluster=str(i)) for i in range(4)]
    short = [row("yes", "no", "closed", cluster=str(i)) for i in range(4)]
    gained = {
        name: score_protocol(PROTOCOLS[ProtocolName(name)], wordy, against=short, num_samples=20)
        for name in ("llava_med", "medvqa")
    }
    assert gained["llava_med"]["yes/no accuracy"].mean == 1
    assert gained["medvqa"]["closed acc."].mean == 0


def test_a_corpus_value_gains_what_its_two_values_differ_by():
    answers = [
        row(text, "a polyp in the colon", cluster=str(n))
        for n, text in enumerate(
            ["a polyp in the colon", "a polyp is in the colon", "one polyp in the colon there"]
        )
    ]
    others = [replace(p, prediction="a polyp in a colon") for p in answers]
    medico = PROTOCOLS[ProtocolName.medico]
    gain = score_protocol(medico, answers, against=others, num_samples=50)["BLEU"]
    ours, theirs = (score_protocol(medico, rows, num_samples=50)["BLEU"].mean
                    for rows in (answers, others))  # fmt: skip
    assert gain.mean == pytest.approx(ours - theirs)
    assert gain.low <= gain.mean <= gain.high


@pytest.fixture
def answers_file(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [
        {"id": 1, "question": "q", "gt": "no", "pred": "not known", "image": "a"},
        {"id": 2, "question": "q", "gt": "left lung", "pred": "the left side", "image": "b"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_all_prints_a_row_per_protocol_and_the_gain_under_each(answers_file, tmp_path, capsys):
    stored = tmp_path / "out.json"
    arguments = [str(answers_file), "--protocol", "all", "--against", str(answers_file)]
    main_score([*arguments, "--json", str(stored)])
    printed = capsys.readouterr().out
    for name in ProtocolName:
        assert f"{name.value}: open/closed by" in printed
    assert "not comparable (a language model judged): Lingshu-7B" in printed
    assert "gain +0.00" in printed
    scores = json.loads(stored.read_text())["protocols"]
    assert set(scores) == {name.value for name in ProtocolName}
    with pytest.raises(UserError, match="is none of seed, "):
        main_score([str(answers_file), "--protocol", "llavamed"])


class _Server(BaseHTTPRequestHandler):
    num_requests = 0

    def do_POST(self):
        type(self).num_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_right = "left side" in body["messages"][0]["content"]
        reply = "correct" if is_right else "Incorrect."
        message = {"choices": [{"message": {"content": reply}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(message).encode())

    def log_message(self, *_):
        pass


def test_a_judge_scores_open_answers_once_and_its_agreement_is_printed(answers_file, capsys):
    _Server.num_requests = 0
    server = HTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=server.serve_forever, daemon=True).start()
    judge = ["--judge", f"endpoint=http://127.0.0.1:{server.server_port}/v1", "model=judge"]
    try:
        for _ in range(2):
            main_score([str(answers_file), "--protocol", "medevalkit", *judge])
            printed = capsys.readouterr().out
            assert "open acc (judge)" in printed
            assert "may stand beside: Lingshu-7B" in printed
            assert "the judge and em agree on 0.0% of 1 open answers" in printed
    finally:
        server.shutdown()
    assert _Server.num_requests == 1
    with pytest.raises(UserError, match="endpoint=URL and model=NAME"):
        main_score([str(answers_file), "--protocol", "medevalkit", "--judge", "a=b", "c=d"])
