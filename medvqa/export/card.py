"""The model card: what was trained on what, how well it answers, and what it must not be used for.

Everything in it is read from the run's files, so a number in a card leads to the run.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from medvqa.evaluation.evaluate import Evaluation
from medvqa.evaluation.score import SHOWN, cell
from medvqa.export.merging import MERGED, MergeCheck
from medvqa.export.vllm import vllm_command
from medvqa.models.prompt import INSTRUCTION
from medvqa.models.source import EMBEDDED
from medvqa.models.trained import Trained

DISCLAIMER = (
    "For research only. This model is not a medical device, was not validated on patients, and "
    "its answers are often wrong. Do not use it for diagnosis, treatment or any decision about a "
    "person."
)
PHASES = {
    "majority": "most frequent training answer",
    "zero_shot": "base model",
    "blind": "with the adapter, shown no picture",
    "final": "with the adapter",
    MERGED: "merged",
}
GROUPS = ("overall", "open", "closed")
DATA_LICENCES = {
    "phantom": "drawn by medvqa itself, Apache-2.0",
    "vqa_rad": "CC0 1.0",
    "slake": "CC BY 4.0",
    "vqa_med_2019": "CC BY 4.0",
    "path_vqa": "MIT, as its card on the hub says",
    "robailleo": "see the card of robailleo/medical-vision-llm-dataset",
    "imaging_combined": "documented nowhere: ask the authors before you share the model",
    "jsonl": "the owner's own data: ask them before you share the model",
}
BASE_LICENCES = {
    "medvqa/": "Apache-2.0",
    "Qwen/Qwen3-VL-": "Apache-2.0",
    "Qwen/Qwen2-VL-2B": "Apache-2.0",
    "Qwen/Qwen2-VL-7B": "Apache-2.0",
    "unsloth/Qwen3-VL-": "Apache-2.0, as the original",
    "unsloth/Qwen2-VL-2B": "Apache-2.0, as the original",
    "unsloth/Qwen2-VL-7B": "Apache-2.0, as the original",
}


def model_card(
    trained: Trained,
    values: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    *,
    place: str,
    check: MergeCheck | None = None,
) -> str:
    """Return README.md.

    Args:
        trained: What is exported, an adapter or a merged model.
        values: What export.json holds.
        evaluations: Baselines and results.
        place: What stands for this directory in the examples of use.
        check: Of the merge, where there was one.
    """
    sections = [
        _front_matter(trained),
        f"# {trained.name}",
        _opening(trained, values),
        f"> **{DISCLAIMER}**",
        "## Results",
        *_results(trained, evaluations),
        "## Data",
        *_data(values),
        "## Curriculum",
        *_curriculum(values),
        "## Hyper-parameters",
        *_hyper_parameters(values),
        "## Use",
        *_use(trained, place),
        *(["## Merge", _merge(values, check)] if check else []),
        "## Licences",
        *_licences(values),
        "## Where this comes from",
        _provenance(values),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(trained: Trained) -> str:
    library = "peft" if trained.adapter else "transformers"
    return "\n".join(
        [
            "---",
            *([] if trained.model.name in EMBEDDED else [f"base_model: {trained.model.name}"]),
            f"library_name: {library}",
            "pipeline_tag: image-text-to-text",
            "license: other",
            "license_name: research-only",
            "license_link: README.md",
            "tags: [medical, visual-question-answering, lora, medvqa]",
            "---",
        ]
    )


def _opening(trained: Trained, values: Mapping[str, Any]) -> str:
    base = values["base"]
    precision = "4-bit" if base["is_quantized"] else "full-precision"
    revision = base["revision"] or "not pinned"
    what = (
        f"A LoRA adapter (PEFT format) for `{base['name']}`"
        if trained.adapter
        else f"`{base['name']}` with a LoRA adapter merged into its weights"
    )
    return (
        f"{what}, revision {revision}, trained on a {precision} base "
        f"(`load_in_4bit={str(base['load_in_4bit']).lower()}`) to answer questions about medical "
        "images with a word or a short phrase."
    )


def _results(trained: Trained, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    names = list(dict.fromkeys(evaluation.set_name for evaluation in evaluations))
    if not names:
        yield "This run had no evaluation set: nothing is known about its answers."
        return
    for name in names:
        shown = [e for p in PHASES for e in evaluations if (e.set_name, e.phase) == (name, p)]
        columns = [m for m in SHOWN if any(m in s for e in shown for s in e.summary.values())]
        rows = [
            [PHASES[e.phase], group, *(cell(e.summary[group].get(metric)) for metric in columns)]
            for e in shown
            for group in GROUPS
            if group in e.summary
        ]
        yield f"Set `{name}`:"
        yield _table(["", "questions", *(SHOWN[metric] for metric in columns)], rows)
    config = trained.evaluation
    yield (
        "Means with 95 % intervals (bootstrap over pictures) and the number of questions n. Greedy "
        f"answers of at most {config.max_new_tokens} tokens, normalised as "
        f"`{config.normalizer.value}`; BERTScore by `{config.bertscore.model}`."
    )


def _data(values: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [
            name,
            ", ".join(f"{source} {count:,}" for source, count in pool["sources"].items()),
            f"{pool['num_images']:,}",
            *(f"{pool['answer_types'].get(kind, 0):,}" for kind in ("open", "closed")),
            f"{pool['num_skipped']:,}",
            f"`{pool['sha256']}`",
        ]
        for name, pool in values["data"].items()
    ]
    yield _table(["", "questions", "pictures", "open", "closed", "skipped", "SHA-256"], rows)
    yield _overlap(values.get("contamination"))


def _overlap(found: Mapping[str, Any] | None) -> str:
    """Return what the contamination gate found, set by set."""
    if not found:
        return "Overlap of training and evaluation data: not recorded by this run."
    shares = "; ".join(
        f"`{name}` {values['image_overlap']:.1%} of the pictures and "
        f"{values['item_overlap']:.1%} of the questions with picture "
        f"and answer ({values['num_items']:,})"
        for name, values in found["sets"].items()
    )
    return (
        f"Overlap of training and evaluation data (`contamination={found['action']}`): "
        f"{shares or 'no set to compare'}; {found['num_training_rows_concerned']:,} training rows "
        f"concerned, {found['num_dropped']:,} of them dropped before training."
    )


def _curriculum(values: Mapping[str, Any]) -> Iterator[str]:
    plan, curriculum = values["plan"], values["config"]["curriculum"]
    names = ("num_steps", "num_examples", "num_distinct", "learning_rate", "optimizer")
    yield (
        f"`{curriculum['name']}` (stages {curriculum['merge']}), {plan['num_steps']} steps. The "
        f"ids in the order in which they were consumed have the SHA-256 `{plan['order_sha256']}`."
    )
    yield _table(
        ["stage", "steps", "examples", "different", "learning rate", "optimiser"],
        [[stage["name"], *(stage[name] for name in names)] for stage in plan["stages"]],
    )


def _hyper_parameters(values: Mapping[str, Any]) -> Iterator[str]:
    config, result = values["config"], values["training"]
    groups = {name: config[name] for name in ("lora", "training")}
    rows = [
        [f"`{group}.{key}`", f"`{json.dumps(value)}`"]
        for group, settings in groups.items()
        for key, value in settings.items()
    ]
    model = config["model"]
    rows += [
        [f"`model.{key}`", f"`{json.dumps(model[key])}`"] for key in ("min_pixels", "max_pixels")
    ]
    yield _table(["setting", "value"], [*rows, ["`seed`", f"`{config['seed']}`"]])
    yield (
        f"Really used: optimiser {result['optimizer']}, engine {result['engine']}, "
        f"{result['micro_batch_size']} samples at once. Final loss {result['final_loss']:.4f}, "
        f"average {result['average_loss']:.4f}."
    )


def _use(trained: Trained, place: str) -> Iterator[str]:
    yield (
        "The prompt is all pictures, then the question, a line break and "
        f"`{INSTRUCTION}`; `medvqa` adds the last line itself:"
    )
    yield f"```\nmedvqa serve {shlex.quote(place)}\n```"
    yield _code(_snippet(trained, place), "python")
    command = vllm_command(trained, weights=place, base=trained.model.name)
    yield f"With vLLM:\n\n```\n{shlex.join(command)}\n```"


def _snippet(trained: Trained, place: str) -> list[str]:
    model = trained.model
    lines = ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    load = "AutoModelForImageTextToText.from_pretrained"
    dtype = f'dtype="{trained.values["model"]["dtype"]}"'
    if trained.adapter is None:
        lines.append(f"model = {load}({place!r}, {dtype})")
    else:
        lines.insert(0, "from peft import PeftModel")
        base = repr(model.name)
        if model.name in EMBEDDED:
            lines.insert(0, "from medvqa.models.source import EMBEDDED")
            base = f"EMBEDDED[{base}]"
        revision = f", revision={trained.revision!r}" if trained.revision else ""
        lines += [
            f"base = {load}({base}{revision}, {dtype})",
            f"model = PeftModel.from_pretrained(base, {place!r})",
        ]
    return [*lines, f"processor = AutoProcessor.from_pretrained({place!r})"]


def _merge(values: Mapping[str, Any], check: MergeCheck) -> str:
    equal = values["merge"]["equal_answers"]
    answers = "; ".join(
        f"{counts['equal']} of {counts['of']} answers on `{name}` equal the run's"
        for name, counts in equal.items()
    )
    return (
        f"Merged in {values['merge']['dtype']}. On {check.num_prompts} prompts the adapter changes "
        f"the logits by {check.adapter_minus_base:.4g} (root mean square), the merged model is off "
        f"by {check.merged_minus_adapter:.4g} from the adapter "
        f"(tolerance: {check.tolerance:.1%} of the change). {answers or 'No set to answer'}."
    )


def _licences(values: Mapping[str, Any]) -> Iterator[str]:
    name = values["base"]["name"]
    base = next((text for start, text in BASE_LICENCES.items() if name.startswith(start)), None)
    sources = dict.fromkeys(s for pool in values["data"].values() for s in pool["sources"])
    rows = [
        [f"base model `{name}`", base or "see its own card"],
        *([f"data `{source}`", _data_licence(source)] for source in sources),
        ["code (medvqa)", "Apache-2.0"],
    ]
    yield _table(["what", "licence"], rows)
    yield "Who uses these weights must respect all of them."


def _data_licence(source: str) -> str:
    return DATA_LICENCES.get(source, "see its own card")


def _provenance(values: Mapping[str, Any]) -> str:
    commit = values["git"]["commit"] or "unknown (an installed package)"
    dirty = ", with uncommitted changes" if values["git"]["dirty"] else ""
    packages = values["environment"]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return (
        f"Run `{values['run_id']}`, trained {values['trained']}, commit `{commit}`{dirty}. "
        f"Adapter SHA-256 `{values['adapter_sha256']}`. Python {values['environment']['python']}, "
        f"{versions}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _code(lines: Sequence[str], language: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
