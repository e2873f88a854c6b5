"""Where a training step and an evaluation spend their time, on one model with random weights.

    python benchmarks/engine_profile.py qwen3_vl_8b --vqa-rad DIR --tokenizer FILE --out FILE

Writes GPU milliseconds a step by kind of kernel, the wall time of the same steps without the
profiler, and the phases of answering. What products of matrices alone take is the floor.
"""

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from engine import build

from medvqa import generation
from medvqa.collate import Encoder
from medvqa.config import Decoding, Optimizer, SourceConfig, TrainingConfig
from medvqa.data import load_examples
from medvqa.engine import PackedModel
from medvqa.optimizer import AdapterOptimizer
from medvqa.record import provenance, write_json

ACTIVITIES = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
KINDS = (
    ("attention", r"flash|fmha|attention"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|splitK|sm90"),
    ("norm and rotary", r"norm_rope"),
    ("RMSNorm", r"rms_norm|RMSNorm|layer_norm|LayerNorm"),
    ("SwiGLU", r"swiglu"),
    ("optimiser", r"adam|multi_tensor|lpnorm|foreach"),
    ("4 bits", r"dequant|quant"),
    ("copies and casts", r"copy|Memcpy|Memset|cat|fill"),
)


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel):
            return kind
    return "other elementwise"


def profile_training(loaded: Any, samples: list[Any], num_steps: int) -> dict[str, Any]:
    """Return what a step of the samples costs once their pictures' features are there."""
    config = TrainingConfig(optimizer=Optimizer.adamw)
    optimizer = AdapterOptimizer(loaded, config, in_compute_type=True)
    model = PackedModel(loaded, loaded.processor.image_token_id)
    loaded.use_for(training=True)
    num_tokens = sum(len(sample.answer_ids) for sample in samples)

    def step() -> torch.Tensor:
        loss = model.loss(samples, num_tokens)
        loss.backward()
        optimizer.collect()
        optimizer.step(1e-4, max_grad_norm=1.0)
        return loss

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    launched = time.perf_counter() - started
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / num_steps
    with torch.profiler.profile(activities=ACTIVITIES) as profiler:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    by_kind: dict[str, float] = defaultdict(float)
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiler.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            milliseconds = event.self_device_time_total / 2000
            by_kind[kind_of(event.key)] += milliseconds
            kernels[event.key[:110]][0] += milliseconds
            kernels[event.key[:110]][1] += event.count / 2
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
    return {
        "num_tokens": sum(sample.num_tokens for sample in samples),
        "ms_a_step": round(1000 * seconds, 1),
        "ms_to_launch": round(1000 * launched / num_steps, 1),
        "samples_per_second": round(len(samples) / seconds, 2),
        "gpu_ms_by_kind": {k: round(v, 1) for k, v in sorted(by_kind.items(), key=lambda i: -i[1])},
        "num_kernels": sum(count for _, count in kernels.values()),
        "peak_gpu_gb": round((loaded.peak_gpu_bytes() or 0) / 1e9, 1),
        "top": [(name, round(ms, 2), count) for name, (ms, count) in top],
    }


def profile_answering(loaded: Any, examples: list[Any], batch_size: int) -> dict[str, Any]:
    """Return seconds by phase, each ended by waiting for the GPU."""
    spent: dict[str, float] = defaultdict(float)
    names = ("begin", "extend", "step")
    originals = {name: getattr(generation._Branches, name) for name in names}

    def timed(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            torch.cuda.synchronize()
            started = time.perf_counter()
            result = originals[name](*arguments)
            torch.cuda.synchronize()
            spent[name] += time.perf_counter() - started
            return result

        return call

    result: dict[str, Any] = {"batch_size": batch_size, "num_questions": len(examples)}
    for name in names:
        setattr(generation._Branches, name, timed(name))
    encoder = Encoder(loaded.processor, max_length_tokens=2048)
    try:
        for run in ("pictures new", "pictures known"):
            spent.clear()
            started = time.perf_counter()
            generation.generate(
                loaded, encoder, examples, max_new_tokens=8, batch_size=batch_size,
                decoding=Decoding.shared_prefix,
            )  # fmt: skip
            total = time.perf_counter() - started
            result[run] = {"s_a_question": round(total / len(examples), 5), "total": total, **spent}
    finally:
        for name in names:
            setattr(generation._Branches, name, originals[name])
    started = time.perf_counter()
    fresh = Encoder(loaded.processor, max_length_tokens=2048)
    for example in examples[:200]:
        fresh.encode(example)
    result["encoding_s_a_question"] = (time.perf_counter() - started) / 200
    started = time.perf_counter()
    for example in examples[:200]:
        fresh.encode(example)
    result["encoding_again_s_a_question"] = (time.perf_counter() - started) / 200
    return result


def main() -> None:
    """Profile; each part is written as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--vqa-rad", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--questions", type=int, default=2248)
    parser.add_argument("--batch-sizes", default="128,256")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    loaded = build(options.name, options.tokenizer)
    source = SourceConfig(name="vqa_rad", path=str(options.vqa_rad), split="all")
    examples = load_examples(source, seed=0)
    encoder = Encoder(loaded.processor, max_length_tokens=2048)
    result: dict[str, Any] = {"model": options.name, **provenance()}
    # As near as possible to 322 tokens each, the sample that DESIGN 7 measured.
    samples = sorted(map(encoder.encode, examples[:200]), key=lambda s: abs(s.num_tokens - 322))
    result["training"] = profile_training(loaded, samples[:8], options.steps)
    sys.stdout.write(json.dumps(result["training"], indent=1) + "\n")
    write_json(options.out, result)
    result["answering"] = []
    for size in map(int, options.batch_sizes.split(",")):
        row = profile_answering(loaded, list(examples[: options.questions]), size)
        result["answering"].append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        write_json(options.out, result)


if __name__ == "__main__":
    main()
