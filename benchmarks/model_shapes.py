"""Train and answer with models of other families at their full shapes, with random weights.

    python -m benchmarks.model_shapes --shared ../shared --out FILE     # one GPU of 80 GB
    python -m benchmarks.model_shapes --shared ../shared --out FILE --tiny    # rehearsal on a CPU

Each model is a process of its own: 16 steps of 8 x 1 after 8 for warming up, 64 answers of 8
tokens, and the peak of GPU memory, on VQA-RAD's questions. Speed and memory are real; answers are
noise. Gemma 3 is also saved, and TRL's SFTTrainer trains it on the same questions in
`benchmarks/peers/sft.py`. FILE is rewritten after each model, so a visit that ends early leaves
what was measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEPS, WARM_UP, ANSWERS, NEW_TOKENS, BATCH_SIZE = 16, 8, 64, 8, 8
QWEN2_5_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
QWEN3_VISION = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304}
# Family in tests/tiny_models.py, and what of its tiny shape is replaced.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl_7b": {
        "family": "qwen2_5_vl",
        "text": {**QWEN2_5_7B, "head_dim": 128, "vocab_size": 152064},
        "rope": {"mrope_section": [16, 24, 24]},
        "vision": {
            **QWEN_VISION, "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]
        },
    },
    "gemma3_4b": {
        "family": "gemma3",
        "text": {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 1024, "vocab_size": 262208,
            "tie_word_embeddings": True,
            "layer_types": [
                "full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(34)
            ],
        },
        "vision": {**SIGLIP, "image_size": 896},
        "top": {"mm_tokens_per_image": 256, "tie_word_embeddings": True},
        "pictures": {"size": {"height": 896, "width": 896}},
        "processor": {"image_seq_length": 256},
    },
    "smolvlm2_2b": {
        "family": "smolvlm",
        "text": {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64,
            "vocab_size": 152000,
        },
        "vision": {**SIGLIP, "image_size": 384},
        "top": {"scale_factor": 3},
        "pictures": {"size": {"longest_edge": 768}, "max_image_size": {"longest_edge": 384}},
        "processor": {"image_seq_len": 81},
    },
    "internvl3_8b": {
        "family": "internvl",
        "text": {**QWEN2_5_7B, "head_dim": 128, "vocab_size": 152000},
        "vision": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
        },
        "top": {"image_seq_length": 256},
        "pictures": {"size": {"height": 448, "width": 448}, "crop_to_patches": False},
        "processor": {"image_seq_length": 256},
    },
    "qwen3_vl_32b": {
        "family": "qwen3_vl",
        "four_bit": True,
        "text": {
            "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151936,
        },
        "rope": {"mrope_section": [24, 20, 20]},
        "vision": {
            **QWEN3_VISION, "out_hidden_size": 5120, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
}  # fmt: skip
PEER = "gemma3_4b"


def shaped(name: str, shared: Path, *, tiny: bool) -> tuple[Any, Any]:
    """Return the configuration and the processor at full shape, or as the tests have them."""
    from tests.tiny_models import FAMILIES

    shape = MODELS[name]
    vocabulary = None if tiny else shared / "hubfiles" / "qwen2.5-vl-7b-instruct"
    config, processor = FAMILIES[shape["family"]](shared, vocabulary)
    if tiny:
        return config, processor
    values = config.to_dict()
    values.pop("transformers_version")
    text, vision = values["text_config"], values["vision_config"]
    text |= {**shape["text"], "initializer_range": 0.02}
    if "layer_types" not in shape["text"]:
        text.pop("layer_types", None)
    if "rope" in shape:
        text["rope_parameters"] |= shape["rope"]
    vision |= {**shape["vision"], "initializer_range": 0.02}
    values |= shape.get("top", {})
    config = type(config)(**{k: v for k, v in values.items() if k != "model_type"})
    for option, value in shape.get("pictures", {}).items():
        present = getattr(processor.image_processor, option)
        is_size = isinstance(value, dict)
        setattr(processor.image_processor, option, type(present)(**value) if is_size else value)
    if "processor" in shape:
        parts = [processor.image_processor, processor.tokenizer]
        parts += [processor.video_processor] if hasattr(processor, "video_processor") else []
        template = processor.chat_template or processor.tokenizer.chat_template
        processor = type(processor)(*parts, chat_template=template, **shape["processor"])
    return config, processor


def load(name: str, shared: Path, *, tiny: bool, save: Path | None) -> Any:
    """Return the loaded model with an adapter of rank 16, made on the device."""
    import torch
    from transformers import AutoModelForImageTextToText

    from benchmarks.engine.workload import quantize
    from medvqa.config.lora import LoraConfig
    from medvqa.config.model import Backend, ModelConfig
    from medvqa.models.families import qwen
    from medvqa.models.load import with_adapter
    from medvqa.models.loaded import LoadedModel

    config, processor = shaped(name, shared, tiny=tiny)
    has_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if has_gpu else (torch.float32, "cpu")
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    base.requires_grad_(False)
    base.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    if save is not None:
        base.save_pretrained(save)
        processor.save_pretrained(save)
    is_quantized = bool(MODELS[name].get("four_bit")) and has_gpu
    if is_quantized:
        quantize(base)
    if type(processor).__name__ in qwen.PROCESSORS:
        qwen.set_pixel_budget(processor, ModelConfig(name=name, max_pixels=512 * 512))
    place = next(base.parameters()).device
    loaded = LoadedModel(base, processor, place, dtype, Backend.transformers, name, is_quantized,
                         is_adapted=False)  # fmt: skip
    return with_adapter(loaded, LoraConfig())  # `train` initialises it


def measure(name: str, shared: Path, *, tiny: bool, save: Path | None) -> dict[str, Any]:
    """Return seconds and peak memory of the steps and of the answers."""
    import torch

    from benchmarks.engine.training import Case, train
    from medvqa.config.data import SourceConfig
    from medvqa.config.evaluation import Decoding
    from medvqa.config.training import Engine
    from medvqa.data.pool import load_examples
    from medvqa.evaluation.generate import generate
    from medvqa.fast.choice import choose_path
    from medvqa.models.encode import Encoder

    began = time.monotonic()
    loaded = load(name, shared, tiny=tiny, save=save)
    load_seconds = time.monotonic() - began
    encoder = Encoder(loaded.processor, max_length_tokens=8192, pixel_dtype=loaded.dtype)
    source = SourceConfig(name="vqa_rad", path=str(shared / "data" / "vqa_rad"), split="train")
    examples = load_examples(source, seed=0)
    steps, answers = (2, 4) if tiny else (STEPS, ANSWERS)
    engine = choose_path(loaded, Engine.auto, Decoding.auto).engine
    trained = train(loaded, encoder, examples, Case(engine, BATCH_SIZE), WARM_UP + steps)
    peak_of_training = loaded.peak_gpu_bytes()
    seconds = sum(trained.seconds[WARM_UP:])
    loaded.reset_peak()
    began = time.monotonic()
    answered = generate(
        loaded, encoder, examples[:answers], max_new_tokens=NEW_TOKENS, batch_size=32
    )
    answer_seconds = time.monotonic() - began
    return {
        "model": name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "is_tiny": tiny,
        "num_parameters": sum(p.numel() for p in loaded.inner.parameters()),
        "is_quantized": loaded.is_quantized,
        "engine": engine.value,
        "decoding": answered.decoding,
        "micro_batch_size": trained.micro_batch_size,
        "num_steps": steps,
        "seconds_per_step": round(seconds / steps, 4),
        "samples_per_second": round(steps * BATCH_SIZE / seconds, 2),
        "tokens_per_sample": round(trained.num_tokens / len(trained.seconds) / BATCH_SIZE, 1),
        "first_and_last_loss": [trained.losses[0], trained.losses[-1]],
        "training_peak_gb": _gigabytes(peak_of_training),
        "num_answers": len(answered.texts),
        "answers_per_second": round(answers / answer_seconds, 2),
        "answering_peak_gb": _gigabytes(loaded.peak_gpu_bytes()),
        "load_seconds": round(load_seconds, 1),
    }


def _gigabytes(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / 1e9, 1)


def write_questions(shared: Path, path: Path) -> None:
    """Write VQA-RAD's training questions, prompted as medvqa prompts, for the peer's script."""
    from medvqa.config.data import SourceConfig
    from medvqa.data.pool import load_examples
    from medvqa.models.prompt import INSTRUCTION

    source = SourceConfig(name="vqa_rad", path=str(shared / "data" / "vqa_rad"), split="train")
    lines = []
    for number, example in enumerate(load_examples(source, seed=0)[:512]):
        (path.parent / f"{number}.jpg").write_bytes(example.images[0].read())
        question = f"{example.question.strip()}\n{INSTRUCTION}"
        row = {"image": f"{number}.jpg", "question": question, "answer": example.answers[0]}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure_peer(base: Path, shared: Path, directory: Path, *, tiny: bool) -> dict[str, Any]:
    """Return what TRL's SFTTrainer does with the saved model, at 8 x 1."""
    questions, out = directory / "questions.jsonl", directory / "peer.json"
    write_questions(shared, questions)
    steps, warm_up = (2, 1) if tiny else (STEPS, WARM_UP)
    subprocess.run(
        [
            *(sys.executable, "benchmarks/peers/sft.py", "trl", str(base), str(questions)),
            *("--out", str(out), "--micro-batch", str(BATCH_SIZE), "--accumulation", "1"),
            *("--steps", str(steps), "--warm-up", str(warm_up), "--optimizer", "adamw_torch_fused"),
        ],
        check=True,
    )
    return {"model": PEER, "library": "TRL's SFTTrainer", **json.loads(out.read_text())}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the models one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, two steps")
    parser.add_argument("--patience", type=float, default=150, help="seconds per process")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        row = measure(options.one, options.shared, tiny=options.tiny, save=options.save)
        options.out.write_text(json.dumps(row), encoding="utf-8")
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for name in options.models.split(","):
            save = directory / "base" if name == PEER else None
            rows.append(_in_own_process(name, options, directory / "row.json", save))
            if save is not None and "error" not in rows[-1]:
                try:
                    rows.append(measure_peer(save, options.shared, directory, tiny=options.tiny))
                except subprocess.CalledProcessError as error:
                    rows.append({"model": name, "library": "TRL", "error": str(error)})
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _in_own_process(
    name: str, options: argparse.Namespace, out: Path, save: Path | None
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.model_shapes", "--one", name, "--out", str(out)]
    command += ["--shared", str(options.shared), *(["--tiny"] if options.tiny else [])]
    command += ["--save", str(save)] if save else []
    try:
        subprocess.run(command, check=True, timeout=options.patience)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return {"model": name, "error": str(error)[-300:]}
    row: dict[str, Any] = json.loads(out.read_text())
    return row


if __name__ == "__main__":
    main()
