r"""What the parts of the speaking base know, before any training of either: linear probes.

    python -m benchmarks.speaking_probe --parts WHEELS --vqa-rad VQA_RAD \
        --out docs/study/speaking_probe.json

A probe reads SmolLM2's states of the question, EfficientNet's features of the picture, or both
with their products. It predicts one of the training answers of the question's type. Five
image-disjoint folds cover all VQA-RAD questions. The baseline is each fold's majority answer by
type.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.runs import Row, parser_of
from benchmarks.scores import Selected, compared
from medvqa.config.data import SourceConfig
from medvqa.config.evaluation import Normalizer
from medvqa.data.example import Example
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples
from medvqa.data.vqa_rad import FOLDS
from medvqa.evaluation.normalize import normalize
from medvqa.tracking.record import write_json
from tools.speaking_language import load_smollm2
from tools.speaking_pictures import canvases
from tools.speaking_vision import Teacher

C = 50.0  # for features whose squares add up to 1
NUM_ITERATIONS = 60
PRODUCT_RANK = 24
BATCH_SIZE = 32


@torch.no_grad()
def text_states(language: Any, tokenizer: Any, questions: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mean and the last of the last layer's states of each question."""
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"  # seen by no state
    states = {}
    unique = sorted(set(questions), key=len)
    for start in range(0, len(unique), BATCH_SIZE):
        batch = unique[start : start + BATCH_SIZE]
        texts = [f"{question}\nAnswer:" for question in batch]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        hidden = language.model(encoded.input_ids).last_hidden_state
        for question, own, mask in zip(batch, hidden, encoded.attention_mask, strict=True):
            seen = own[: mask.sum()]
            states[question] = torch.cat([seen.mean(0), seen[-1]]).numpy()
    return states


def picture_features(parts: Path, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Return the mean and the maximum of EfficientNet's features of each picture."""
    teacher = Teacher(parts, "cpu")
    features = {}
    for name, image in {e.image_ids[0]: e.images[0] for e in examples}.items():
        pixels = canvases([load_rgb(image)], "cpu").float() / 255
        small = torch.nn.functional.interpolate(pixels, (224, 224), mode="area")
        cells = teacher.features(small)
        features[name] = torch.cat([cells.mean(0), cells.max(0).values]).numpy()
    return features


def with_products(text: np.ndarray, picture: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return both and the products of their main directions, which training rows give."""
    parts = [
        PCA(PRODUCT_RANK, random_state=0).fit(values[training]).transform(values)
        for values in (text, picture)
    ]
    return np.hstack([text, picture, np.einsum("na,nb->nab", *parts).reshape(len(text), -1)])


def compare(states: Any, pictures: Any, examples: Sequence[Example], tested: list[set[str]]) -> Any:
    """Yield each probe's exact match beside the majority answer's, for questions of one type."""
    text = np.stack([states[example.question] for example in examples])
    picture = np.stack([pictures[example.image_ids[0]] for example in examples])
    labels = np.array([normalize(e.answers[0], Normalizer["squad"]) for e in examples])
    right = {name: np.zeros(len(labels)) for name in ("majority", "question", "picture", "both")}
    for names in tested:
        training = np.array([example.id not in names for example in examples])
        both = with_products(text, picture, training)
        inputs = {"majority": text, "question": text, "picture": picture, "both": both}
        for name, values in inputs.items():
            logit = LogisticRegression(C=C / values.shape[1], max_iter=NUM_ITERATIONS)
            model = DummyClassifier() if name == "majority" else logit
            probe = make_pipeline(StandardScaler(), model).fit(values[training], labels[training])
            right[name][~training] = probe.predict(values[~training]) == labels[~training]
    clusters = [example.image_ids[0] for example in examples]
    for name in ("question", "picture", "both"):
        own, majority = (Selected([right[n].tolist()], clusters, [0]) for n in (name, "majority"))
        about = {"questions": examples[0].answer_type, "probe": name}
        yield {**about, **compared(own, majority, paired=False)}


def run(parts: Path, vqa_rad: Path) -> list[Row]:
    """Return the comparisons of both types."""

    def load(split: str) -> list[Example]:
        return load_examples(SourceConfig(name="vqa_rad", path=str(vqa_rad), split=split), seed=0)

    examples = load("all")
    tested = [{example.id for example in load(f"test_{fold}")} for fold in FOLDS]
    with tempfile.TemporaryDirectory() as work:
        language, tokenizer = load_smollm2(parts, Path(work))
    states = text_states(language, tokenizer, [example.question for example in examples])
    pictures = picture_features(parts, examples)
    rows: list[Row] = []
    for kind in ("closed", "open"):
        own = [example for example in examples if example.answer_type == kind]
        rows += compare(states, pictures, own, tested)
    return rows


def main() -> None:
    """Run the probes and write their scores."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--vqa-rad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = run(options.parts, options.vqa_rad)
    write_json(options.out, rows)
    for row in rows:
        sys.stdout.write(f"{row['questions']} {row['probe']}: {row['mean_a']:.3f}, majority "
                         f"{row['mean_b']:.3f}, difference [{row['low']:+.3f}, "
                         f"{row['high']:+.3f}]\n")  # fmt: skip


if __name__ == "__main__":
    main()
