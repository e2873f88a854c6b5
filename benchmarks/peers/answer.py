"""Answer questions in batches, as a user of transformers or of Unsloth would write it.

    python benchmarks/peers/answer.py transformers MODEL QUESTIONS.jsonl --out FILE [options]

This script imports nothing of medvqa. FILE receives the seconds per question and the answers.
"""

import argparse
import json
import time
from pathlib import Path

from sft import load_base


def load(options):
    """Return model and processor of the library, ready to generate."""
    if options.library == "unsloth":
        from unsloth import FastVisionModel

        model, processor = FastVisionModel.from_pretrained(str(options.model), load_in_4bit=False)
        FastVisionModel.for_inference(model)
        return model, processor
    return load_base(options.model)


def decode(model, processor, batch, options):
    """Return the new tokens of a batch of questions, on the host."""
    import torch
    from PIL import Image

    images, texts = [], []
    for row in batch:
        images.append([Image.open(options.questions.parent / row["image"]).convert("RGB")])
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        message = {"role": "user", "content": content}
        texts.append(
            processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        )
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=options.new_tokens, do_sample=False, use_cache=True
        )
    return output[:, inputs["input_ids"].shape[1] :].cpu()


def main():
    """Answer all questions and write the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("transformers", "unsloth"))
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    model, processor = load(options)
    import torch

    processor.tokenizer.padding_side = "left"
    lines = options.questions.read_text(encoding="utf-8").splitlines()[: options.limit]
    rows = [json.loads(line) for line in lines]
    batches = [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]
    answers, seconds = [], []
    for batch in [batches[0], *batches]:  # the first one warms up
        started = time.perf_counter()
        new = decode(model, processor, batch, options)
        answers += processor.batch_decode(new, skip_special_tokens=True)
        seconds.append(time.perf_counter() - started)
    result = {
        "seconds_per_question": round(sum(seconds[1:]) / len(rows), 5),
        "num_questions": len(rows),
        "batch_size": options.batch,
        "peak_gpu_gb": (
            round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None
        ),
        "answers": answers[len(batches[0]) :],
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
