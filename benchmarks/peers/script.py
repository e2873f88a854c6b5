"""Train with TRL's SFTTrainer, or answer, as a user of Unsloth or of transformers would write it.

    python benchmarks/peers/script.py train unsloth MODEL QUESTIONS.jsonl --out FILE [options]
    python benchmarks/peers/script.py answer transformers MODEL QUESTIONS.jsonl --out FILE [options]

This script imports nothing of medvqa. A line of QUESTIONS.jsonl holds `image` (a path relative to
the file), `question` and `answer`. FILE receives the rate.
"""

import argparse
import json
import time
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_unsloth(options):
    """Return Unsloth's model to train, processor and collator, as in its vision notebooks."""
    from unsloth import FastVisionModel  # before trl, transformers and peft
    from unsloth.trainer import UnslothVisionDataCollator

    checkpointing = "unsloth" if options.checkpointing else False
    model, processor = FastVisionModel.from_pretrained(
        str(options.model),
        load_in_4bit=options.four_bit,
        use_gradient_checkpointing=checkpointing,
        max_seq_length=2048,
    )
    model = FastVisionModel.get_peft_model(
        model,
        finetune_vision_layers=False,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=checkpointing,
    )
    FastVisionModel.for_training(model)
    collator = UnslothVisionDataCollator(model, processor, resize="max")
    return model, processor, collator, None


def load_trl(options):
    """Return the base by transformers; SFTTrainer adds the adapter and the collator."""
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    quantization = None
    if options.four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model, processor = load_base(options.model, quantization)
    names = "|".join(TARGETS)
    adapter = LoraConfig(
        r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules=rf".*language_model.*\.({names})"
    )
    return model, processor, None, adapter


def load_base(path, quantization=None):
    """Return model and processor by transformers, on the GPU where there is one."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    has_gpu = torch.cuda.is_available()
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=torch.bfloat16 if has_gpu else torch.float32,
        device_map={"": 0} if has_gpu else None,
        quantization_config=quantization,
    )
    return model, AutoProcessor.from_pretrained(path)


def conversations(options, number):
    """Return the first questions in the form that each library's collator documents."""
    from datasets import Dataset
    from PIL import Image

    rows = []
    for line in options.questions.read_text(encoding="utf-8").splitlines()[:number]:
        row = json.loads(line)
        image = Image.open(options.questions.parent / row["image"]).convert("RGB")
        if options.library == "trl":
            row = {
                "images": [image],
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
        else:
            asked = [{"type": "image", "image": image}, {"type": "text", "text": row["question"]}]
            answer = [{"type": "text", "text": row["answer"]}]
            row = {
                "messages": [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": answer},
                ]
            }
        rows.append(row)
    return Dataset.from_list(rows) if options.library == "trl" else rows


def step_clock():
    """Return a callback that notes when each step has ended on the device."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    return Clock()


def counted(collator, counts):
    """Return the collator, which notes the tokens of each batch."""

    def collate(examples):
        batch = collator(examples)
        counts.append(int(batch["attention_mask"].sum()))
        return batch

    return collate


def arguments(options, num_steps, *, has_collator):
    """Return the trainer's arguments."""
    import torch
    from trl import SFTConfig

    has_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir="/tmp/peer-output",
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.accumulation,
        max_steps=num_steps,
        learning_rate=2e-4,
        warmup_steps=0,
        optim=options.optimizer,
        bf16=has_gpu,
        use_cpu=not has_gpu,
        loss_type="nll",
        gradient_checkpointing=options.checkpointing,
        logging_steps=num_steps,
        save_strategy="no",
        report_to="none",
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True} if has_collator else None,
    )


def train(options):
    """Return the rate of the steps after the warm-up."""
    load = load_unsloth if options.library == "unsloth" else load_trl
    model, processor, collator, adapter = load(options)
    from trl import SFTTrainer

    num_steps = options.warm_up + options.steps
    batch_size = options.micro_batch * options.accumulation
    clock, token_counts = step_clock(), []
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        data_collator=collator,
        train_dataset=conversations(options, num_steps * batch_size),
        peft_config=adapter,
        callbacks=[clock],
        args=arguments(options, num_steps, has_collator=collator is not None),
    )
    trainer.data_collator = counted(trainer.data_collator, token_counts)
    trainer.train()
    seconds = clock.ends[-1] - clock.ends[options.warm_up - 1]
    tokens = sum(token_counts) / len(token_counts) / options.micro_batch
    return {
        "samples_per_second": round(options.steps * batch_size / seconds, 2),
        "tokens_per_sample": round(tokens, 1),
        "num_steps": options.steps,
        "num_trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


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


def answer(options):
    """Return the seconds per question, and the answers."""
    if options.library == "unsloth":
        from unsloth import FastVisionModel

        model, processor = FastVisionModel.from_pretrained(str(options.model), load_in_4bit=False)
        FastVisionModel.for_inference(model)
    else:
        model, processor = load_base(options.model)
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
    return {
        "seconds_per_question": round(sum(seconds[1:]) / len(rows), 5),
        "num_questions": len(rows),
        "batch_size": options.batch,
        "answers": answers[len(batches[0]) :],
    }


def main():
    """Train or answer, and write the rate and the peak of GPU memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "answer"))
    parser.add_argument("library", choices=("unsloth", "trl", "transformers"))
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--optimizer", default="adamw_8bit")
    parser.add_argument(
        "--batch", type=int, default=128, help="questions that are answered at once"
    )
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--limit", type=int, help="of the questions that are answered")
    options = parser.parse_args()
    result = train(options) if options.what == "train" else answer(options)
    import torch

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    result["peak_gpu_gb"] = peak and round(peak / 1e9, 1)
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
