"""Where a training step spends its time: GPU milliseconds by kind of kernel.

What products of matrices alone take is the floor of a step.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.engine.workload import BATCH_SIZE, Bench
from benchmarks.runs import Row
from medvqa.config.training import Engine, Optimizer, TrainingConfig
from medvqa.fast.engine import FusedEngine
from medvqa.fast.pictures import Pictures
from medvqa.models.sample import Sample
from medvqa.training.optimizer import AdapterOptimizer

KINDS = (
    ("attention", r"flash|fmha|attention"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|splitK|sm90"),
    ("norm and rotary", r"norm_rope"),
    ("RMSNorm", r"rms_norm|RMSNorm|layer_norm|LayerNorm"),
    ("SwiGLU", r"swiglu"),
    ("optimiser", r"(?i)adam|multi_tensor|lpnorm|foreach"),
    ("4 bits", r"(?i)quant"),
    ("copies and casts", r"copy|Memcpy|Memset|cat|fill"),
)
NUM_TOKENS = 322  # of the sample that the design's table was measured on
NUM_TOP = 25


def profile(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield a step whose pictures are known, and new pictures alone."""
    if engine is not Engine.fused or bench.loaded.device.type != "cuda":
        return
    encoder = bench.encoder()
    samples = [encoder.encode(example) for example in bench.questions[:200]]
    samples.sort(key=lambda sample: abs(sample.num_tokens - NUM_TOKENS))
    yield {"of": "training", **training_step(bench, samples[:BATCH_SIZE])}
    yield {"of": "vision tower", **tower_pass(bench, samples[:BATCH_SIZE])}


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel):
            return kind
    return "other elementwise"


def measured(action: Callable[[], None], times: int) -> Row:
    """Return milliseconds, time to launch, and the kernels of one call, after three others."""
    for _ in range(3):
        action()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        action()
    launched = time.perf_counter() - started
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / times
    kernels = kernels_of(action)
    by_kind: dict[str, float] = defaultdict(float)
    for name, (milliseconds, _) in kernels.items():
        by_kind[kind_of(name)] += milliseconds
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:NUM_TOP]
    return {
        "ms": round(1000 * seconds, 1),
        "ms_to_launch": round(1000 * launched / times, 1),
        "gpu_ms": round(sum(by_kind.values()), 1),
        "gpu_ms_by_kind": {k: round(v, 1) for k, v in sorted(by_kind.items(), key=lambda i: -i[1])},
        "num_kernels": sum(count for _, count in kernels.values()),
        "top": [(name, round(ms, 2), count) for name, (ms, count) in top],
    }


def kernels_of(action: Callable[[], None], *, times: int = 2) -> dict[str, tuple[float, float]]:
    """Return GPU milliseconds and launches per call by the kernel's name."""
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profiler:
        for _ in range(times):
            action()
        torch.cuda.synchronize()
    kernels: dict[str, tuple[float, float]] = {}
    for event in profiler.key_averages():
        # Ranges that are named on the GPU's time line are no kernels.
        if event.device_type == torch._C._autograd.DeviceType.CUDA and "#" not in event.key:
            spent, count = event.self_device_time_total / 1000 / times, event.count / times
            before = kernels.get(event.key[:110], (0.0, 0.0))
            kernels[event.key[:110]] = (before[0] + spent, before[1] + count)
    return kernels


def training_step(bench: Bench, samples: Sequence[Sample]) -> Row:
    """Return what a step of the samples costs once their pictures' features are there."""
    loaded = bench.loaded
    config = TrainingConfig(optimizer=Optimizer.adamw)
    optimizer = AdapterOptimizer(loaded, config, in_compute_type=True)
    model = FusedEngine(loaded)
    loaded.use_for(training=True)
    num_answer_tokens = sum(len(sample.answer_ids) for sample in samples)

    def step() -> None:
        loss = model.loss(samples, num_answer_tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.collect()
        optimizer.step(1e-4, max_grad_norm=1.0)

    row = measured(step, bench.options.steps)
    return {
        "num_tokens": sum(sample.num_tokens for sample in samples),
        "samples_per_second": round(1000 * len(samples) / row["ms"], 2),
        "peak_gpu_gb": bench.peak_gb(),
        **row,
    }


def tower_pass(bench: Bench, samples: Sequence[Sample]) -> Row:
    """Return what the vision tower takes for the samples' pictures, seen for the first time."""
    pictures = Pictures(bench.loaded)

    def compute() -> None:
        bench.loaded.features.clear()
        pictures.features(samples)

    num_pictures = len({key for sample in samples for key in sample.image_keys})
    return {"num_pictures": num_pictures, **measured(compute, bench.options.steps)}
