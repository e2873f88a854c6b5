"""One backend's numbers, by which a difference between two can be narrowed; see `commands`."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine.workload import BATCH_SIZE, Bench, Settings, prepare
from medvqa.config.model import Backend
from medvqa.config.training import Engine
from medvqa.models.encode import IGNORED, Encoder, Sample
from medvqa.tracking.record import write_json

NUM_STEPS = 8
MICRO_BATCH_SIZE = 2


def settings_of(text: str) -> Settings:
    """Return the settings that `commands` has written."""
    values: dict[str, Any] = json.loads(text)
    for name in ("vqa_rad", "tokenizer", "model_path"):
        values[name] = None if values[name] is None else Path(values[name])
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return Settings(**{**values, "backend": Backend[values["backend"]]})


def main() -> None:
    """Write after each number, so that one that fails does not lose those before it."""
    settings, out = settings_of(sys.argv[1]), Path(sys.argv[2])
    bench = prepare(settings)
    found: dict[str, Any] = {}

    def keep(**values: Any) -> None:
        found.update(values)
        write_json(out, found)

    keep(model=bench.loaded.describe(), adapter=adapter(bench), base_sum=base_sum(bench))
    keep(loss_before=losses_of_one_batch(bench))
    keep(steps=steps(bench))
    keep(adapter_after=adapter(bench), loss_after=losses_of_one_batch(bench))
    keep(loss_after_from_logits=loss_from_logits(bench))  # Unsloth may give none


def adapter(bench: Bench) -> dict[str, Any]:
    """Return what decides the adapter's part: sizes, sums, type, dropout, scaling."""
    trainable = bench.loaded.trainable
    layers = [m for m in bench.loaded.model.modules() if getattr(m, "lora_dropout", None)]
    return {
        "num_tensors": len(trainable),
        "num_trainable": sum(p.numel() for _, p in trainable),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for _, p in trainable}),
        "abs_sum_a": sum(float(p.abs().double().sum()) for n, p in trainable if "lora_A" in n),
        "abs_sum_b": sum(float(p.abs().double().sum()) for n, p in trainable if "lora_B" in n),
        "scaling": sorted({value for layer in layers for value in layer.scaling.values()}),
        "dropout": sorted(
            {
                float(getattr(module, "p", 0.0))
                for layer in layers
                for module in layer.lora_dropout.values()
            }
        ),
    }


def base_sum(bench: Bench) -> float:
    """Return a sum over the base's norms and embeddings, stored alike whatever the backend."""
    return sum(
        float(p.abs().double().sum())
        for n, p in bench.loaded.model.named_parameters()
        if "norm" in n and "lora_" not in n
    )


def first_samples(bench: Bench, encoder: Encoder) -> list[Sample]:
    """Return the samples of the first step."""
    from benchmarks.engine.training import plan_of

    by_id = {example.id: example for example in bench.pool}
    names = plan_of(bench.pool, NUM_STEPS).order[:BATCH_SIZE]
    return [encoder.encode(by_id[name]) for name in names]


def losses_of_one_batch(bench: Bench) -> dict[str, float]:
    """Return the first batch's loss, computed by the backend in four ways.

    `by_parts` is the sum over micro-batches, each told the answer tokens of the whole: where a
    backend does not heed that number, it is some times `whole`. `uncounted` is told none.
    """
    import torch

    loaded, encoder = bench.loaded, bench.encoder()
    samples = first_samples(bench, encoder)
    num_answer_tokens = sum(len(sample.answer_ids) for sample in samples)

    def loss(part: slice, **options: Any) -> float:
        batch = encoder.training_batch(samples[part])
        inputs = {name: tensor.to(loaded.device) for name, tensor in batch.items()}
        return float(loaded.model(**inputs, **options).loss)

    whole, count = slice(0, BATCH_SIZE), {"num_items_in_batch": num_answer_tokens}
    parts = [slice(i, i + MICRO_BATCH_SIZE) for i in range(0, BATCH_SIZE, MICRO_BATCH_SIZE)]
    with torch.no_grad(), loaded.autocast():
        loaded.use_for(training=True)
        in_training = {
            "training_mode": loss(whole, **count),
            "by_parts": sum(loss(part, **count) for part in parts),
        }
        loaded.model.eval()
        return {**in_training, "whole": loss(whole, **count), "uncounted": loss(whole)}


def loss_from_logits(bench: Bench) -> float:
    """Return the first batch's loss by our own reading of the model's logits."""
    import torch

    loaded, encoder = bench.loaded, bench.encoder()
    batch = encoder.training_batch(first_samples(bench, encoder))
    inputs = {name: tensor.to(loaded.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    loaded.model.eval()
    with torch.no_grad(), loaded.autocast():
        logits = loaded.model(**inputs).logits[:, :-1]
    kept = labels != IGNORED
    return float(torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept]))


def steps(bench: Bench) -> list[dict[str, Any]]:
    """Return eight steps' loss, gradient norm and learning rate, by our own loop for both."""
    from benchmarks.engine.training import Case, config_of, nothing, plan_of
    from medvqa.training.loop import Trainer

    rows: list[dict[str, Any]] = []
    kept = ("step", "loss", "grad_norm", "learning_rate", "num_answer_tokens", "num_tokens")
    config = config_of(Case(Engine.plain, MICRO_BATCH_SIZE), NUM_STEPS)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(bench.loaded, bench.encoder(), config, directory=Path(directory), seed=0)
        result = trainer.train(
            plan_of(bench.pool, NUM_STEPS),
            {example.id: example for example in bench.pool},
            on_step=lambda row: rows.append({name: row[name] for name in kept}),
            on_stage_end=nothing,
        )
    rows[0] |= {"consumed_sha256": asdict(result)["consumed_sha256"]}
    return rows


if __name__ == "__main__":
    main()
