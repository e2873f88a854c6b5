r"""What the parts of the speaking base know, before any training of either: linear probes.

    python -m benchmarks.speaking_probe --parts WHEELS --vqa-rad VQA_RAD --out docs/study/probe.json

A probe reads SmolLM2's states of the question, EfficientNet's features of the picture, or both
with their products, and gives one of the training answers of the question's type. Five folds,
image-disjoint, over all VQA-RAD questions; compared with each fold's majority answer by type.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

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

PENALTY = 1e-2
PRODUCT_RANK = 24
NUM_ITERATIONS = 60
BATCH_SIZE = 32


def text_states(language: Any, tokenizer: Any, questions: list[str]) -> dict[str, torch.Tensor]:
    """Return the mean and the last of the last layer's states of each question."""
    by_length = sorted(set(questions), key=lambda question: (len(question), question))
    states = {}
    for start in range(0, len(by_length), BATCH_SIZE):
        batch = by_length[start : start + BATCH_SIZE]
        rows = [tokenizer(f"{question}\nAnswer:").input_ids for question in batch]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for place, row in enumerate(rows):  # what stands behind a row is not seen by it
            ids[place, : len(row)] = torch.tensor(row)
        with torch.no_grad():
            hidden = language.model(ids).last_hidden_state
        for question, row, own in zip(batch, rows, hidden, strict=True):
            states[question] = torch.cat([own[: len(row)].mean(0), own[len(row) - 1]])
    return states


def picture_features(parts: Path, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Return the mean and the maximum of EfficientNet's features of each picture."""
    teacher = Teacher(parts, "cpu")
    pictures = {example.image_ids[0]: example.images[0] for example in examples}
    features = {}
    for name, image in pictures.items():
        pixels = canvases([load_rgb(image)], "cpu").float() / 255
        small = torch.nn.functional.interpolate(pixels, (224, 224), mode="area")
        cells = teacher.features(small)
        features[name] = torch.cat([cells.mean(0), cells.max(0).values])
    return features


def joined(text: torch.Tensor, picture: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Return both and the products of their main directions, which training rows give."""
    parts = []
    for values in (text, picture):
        centre = values[training].mean(0)
        _, _, directions = torch.pca_lowrank(values[training] - centre, q=PRODUCT_RANK, niter=4)
        parts.append((values - centre) @ directions)
    products = torch.einsum("na,nb->nab", *parts).flatten(1)
    return torch.cat([text, picture, products], dim=1)


def probe(features: torch.Tensor, labels: list[str], training: torch.Tensor) -> list[str]:
    """Return each row's most probable training answer; a ridge-penalised multinomial logit."""
    mean, spread = features[training].mean(0), features[training].std(0).clamp(min=1e-6)
    scaled = (features - mean) / spread / features.shape[1] ** 0.5
    names = sorted({label for label, own in zip(labels, training, strict=True) if own})
    number = {name: place for place, name in enumerate(names)}
    numbers = [number[label] for label, own in zip(labels, training, strict=True) if own]
    target, seen = torch.tensor(numbers), scaled[training]
    weight = torch.zeros(scaled.shape[1], len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=NUM_ITERATIONS, history_size=5)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = torch.nn.functional.cross_entropy(seen @ weight + bias, target)
        total: torch.Tensor = error + PENALTY / len(seen) * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        return [names[place] for place in (scaled @ weight + bias).argmax(1).tolist()]


def run(parts: Path, vqa_rad: Path) -> list[Row]:
    """Return each probe's exact match beside the majority answer's, by type of question."""
    examples = load_examples(SourceConfig(name="vqa_rad", path=str(vqa_rad), split="all"), seed=0)
    with tempfile.TemporaryDirectory() as work:
        language, tokenizer = load_smollm2(parts, Path(work))
    states = text_states(language, tokenizer, [example.question for example in examples])
    pictures = picture_features(parts, examples)
    rows = []
    for kind in ("closed", "open"):
        own = [example for example in examples if example.answer_type == kind]
        text = torch.stack([states[example.question] for example in own])
        picture = torch.stack([pictures[example.image_ids[0]] for example in own])
        labels = [normalize(example.answers[0], Normalizer["squad"]) for example in own]
        answers: dict[str, list[str]] = {
            name: [""] * len(own) for name in ("majority", "question", "picture", "both")
        }
        for fold in FOLDS:
            source = SourceConfig(name="vqa_rad", path=str(vqa_rad), split=f"test_{fold}")
            tested = {example.id for example in load_examples(source, seed=0)}
            training = torch.tensor([example.id not in tested for example in own])
            given = {
                "question": probe(text, labels, training),
                "picture": probe(picture, labels, training),
                "both": probe(joined(text, picture, training), labels, training),
            }
            known = [label for label, is_own in zip(labels, training, strict=True) if is_own]
            values, counts = np.unique(known, return_counts=True)
            given["majority"] = [str(values[counts.argmax()])] * len(own)
            for name, texts in given.items():
                for place in (~training).nonzero()[:, 0].tolist():
                    answers[name][place] = texts[place]
        right = {
            name: [float(a == b) for a, b in zip(texts, labels, strict=True)]
            for name, texts in answers.items()
        }
        clusters = [example.image_ids[0] for example in own]
        scores = {name: Selected([values], clusters, [0]) for name, values in right.items()}
        for name in ("question", "picture", "both"):
            result = compared(scores[name], scores["majority"], paired=False)
            rows.append({"questions": kind, "probe": name, **result})
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
