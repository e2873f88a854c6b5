"""What scoring VQA-RAD's 2,248 answers costs, and that it gives the straightforward way's values.

    python -m benchmarks.metrics --vqa-rad DIR --out benchmarks/results/metrics_cpu.json
    python -m benchmarks.metrics --vqa-rad DIR --out FILE --device cuda [--random-encoder DIR]

Real questions, pictures as clusters; the prediction is another question's answer of the same type.
The baseline, in the same process: `bert_score.score` on every pair as it is, and a plain loop over
questions, metrics and resamples. Both import and load beforehand what can be loaded beforehand;
what the first scoring of a process pays for that is measured apart. `--random-encoder` is for a
machine without MiniLM's weights: DIR holds its configuration and tokenizer, the weights are random.
"""

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bert_score
import numpy as np
import torch
import transformers

from medvqa.config.data import SourceConfig
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig
from medvqa.data.example import Prediction
from medvqa.data.pool import load_examples
from medvqa.evaluation.bertscore import MINILM_LAYERS, bert_scores, minilm_directory
from medvqa.evaluation.evaluate import metrics, statistics, to_predictions
from medvqa.evaluation.scoring import METRICS, Scored, score_predictions
from medvqa.tracking.record import provenance, write_json

TARGET_S = 0.008  # a question, of the evaluation that scoring is part of
Means = dict[str, dict[str, tuple[float, float, float]]]


def predictions(place: Path, seed: int) -> list[Prediction]:
    """Return VQA-RAD's questions, each with the answer of another of its type."""
    source = SourceConfig(name="vqa_rad", split="all", path=str(place))
    examples = load_examples(source, seed=0)
    by_type = defaultdict(list)
    for index, example in enumerate(examples):
        by_type[example.answer_type].append(index)
    texts = [""] * len(examples)
    for indices in by_type.values():
        shuffled = random.Random(seed).sample(indices, len(indices))
        for index, other in zip(indices, shuffled, strict=True):
            texts[index] = examples[other].answers[0]
    return to_predictions(examples, texts)


def timed(function: Callable[[], Any], device: str) -> tuple[Any, dict[str, float]]:
    """Return the result, and wall and processor seconds."""
    started, used = time.perf_counter(), time.process_time()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - used,
    }


def random_encoder(shape: Path, directory: Path) -> BertScoreConfig:
    """Save an encoder of the configured shape with seeded random weights, and its tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(shape)
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(shape).save_pretrained(directory)
    return BertScoreConfig(model=str(directory), num_layers=MINILM_LAYERS)


def straightforward_bertscore(
    rows: Sequence[Prediction], encoder: BertScoreConfig, device: str
) -> list[float]:
    """Score every pair as it is, with the package's own function and batch size."""
    f1 = bert_score.score(
        [row.prediction for row in rows],
        [row.references[0] for row in rows],
        model_type=str(minilm_directory()) if encoder.model == "minilm" else encoder.model,
        num_layers=MINILM_LAYERS,
        device=device,
    )[2]
    return [float(value) for value in f1]


def straightforward_rest(
    rows: Sequence[Prediction], f1: Sequence[float], config: EvaluationConfig, seed: int
) -> Means:
    """Score question by question, and average resample by resample."""
    items = []
    for row, value in zip(rows, f1, strict=True):
        metrics.normalize.cache_clear()
        said, wanted, normalizer = row.prediction, row.references, config.normalizer
        is_closed = row.answer_type == "closed"
        right = metrics.closed_answer(said, wanted, normalizer) if is_closed else None
        items.append(
            {
                "exact_match": metrics.exact_match(said, wanted, normalizer),
                "f1": metrics.token_f1(said, wanted, normalizer),
                "token_recall": metrics.token_recall(said, wanted, normalizer),
                "numeric_exact_match": metrics.numeric_match(
                    said, wanted, config.numeric_tolerance
                ),
                "closed_accuracy": bool(right) if is_closed else None,
                "unparsable": right is None if is_closed else None,
                "bertscore_f1": value,
            }
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for group in ("overall", row.answer_type, f"split:{row.split}"):
            groups[group].append(index)
    result: Means = {}
    for group, members in groups.items():
        result[group] = {}
        for metric in METRICS:
            rated = [(rows[i].cluster, items[i][metric]) for i in members]
            rated = [(cluster, float(value)) for cluster, value in rated if value is not None]
            if rated:
                result[group][metric] = resampled(rated, config.bootstrap_samples, seed)
    return result


def resampled(
    rated: Sequence[tuple[str, float]], num_samples: int, seed: int
) -> tuple[float, float, float]:
    """Return mean and 95 % interval, with the draws that `clustered_bootstrap` makes."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for cluster, value in sorted(rated, key=lambda pair: pair[0]):
        clusters[cluster].append(value)
    sums = [(sum(values), len(values)) for values in clusters.values()]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_samples):
        total = count = 0.0
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)))
        for times, (values, size) in zip(drawn.tolist(), sums, strict=True):
            total += times * values
            count += times * size
        means.append(total / count)
    low, high = np.quantile(means, [0.025, 0.975])
    return sum(value for _, value in rated) / len(rated), float(low), float(high)


def differences(scored: Scored, means: Means, f1: Sequence[float]) -> dict[str, Any]:
    """Compare all values of both ways."""
    apart = [
        max(abs(ours - theirs) for ours, theirs in zip((s.mean, s.low, s.high), told, strict=True))
        for group, values in means.items()
        for metric, told in values.items()
        for s in (scored.summary[group][metric],)
    ]
    assert sum(map(len, scored.summary.values())) == len(apart)
    own = [item.bertscore_f1 or 0.0 for item in scored.items]
    of_pairs = np.abs(np.array(own) - np.array(f1))
    return {
        "num_means_and_intervals": len(apart),
        "largest_of_means_and_intervals": max(apart),
        "largest_of_a_pair": float(of_pairs.max()),
        "num_pairs_above_1e-5": int((of_pairs > 1e-5).sum()),
    }


def main() -> None:
    """Measure both ways and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vqa-rad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random-encoder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        shape = options.random_encoder
        encoder = random_encoder(shape, Path(directory)) if shape else BertScoreConfig()
        record = measured(options.vqa_rad, encoder, options.device, options.seed)
    write_json(options.out, {**record, "encoder": "minilm's shape, random" if shape else "minilm"})


def measured(vqa_rad: Path, encoder: BertScoreConfig, device: str, seed: int) -> dict[str, Any]:
    """Measure both ways and return the record."""
    config = EvaluationConfig(bertscore=encoder)
    rows = predictions(vqa_rad, seed)
    _, loading = timed(lambda: bert_scores([("a", ["b"])], encoder, device=device), device)

    def ours() -> Scored:
        return score_predictions(rows, config, device=device, seed=seed)

    scored, first = timed(ours, device)
    _, later = timed(ours, device)
    without = EvaluationConfig(bertscore=BertScoreConfig(enabled=False))
    statistics._kept_multiplicities.cache_clear()
    metrics.normalize.cache_clear()
    _, rest = timed(lambda: score_predictions(rows, without, device=device, seed=seed), device)
    f1, bert_s = timed(lambda: straightforward_bertscore(rows, encoder, device), device)
    means, loop_s = timed(lambda: straightforward_rest(rows, f1, config, seed), device)
    baseline = {name: bert_s[name] + loop_s[name] for name in bert_s}
    evaluation_s = TARGET_S * len(rows)
    return {
        **provenance(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "num_predictions": len(rows),
        "num_unique_pairs": (scored.bertscore or {})["num_unique_pairs"],
        "num_resamples": config.bootstrap_samples,
        "load_encoder_once_a_process": loading,
        "ours_first": first,
        "ours_later": later,
        "ours_without_bertscore": rest,
        "baseline": {**baseline, "bertscore": bert_s, "loop": loop_s},
        "times_as_fast": {name: baseline[name] / first[name] for name in baseline},
        "share_of_an_evaluation_at_target": first["wall_s"] / evaluation_s,
        "differences": differences(scored, means, f1),
    }


if __name__ == "__main__":
    main()
