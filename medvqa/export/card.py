"""The model card: what was trained on what, how well it answers, and what it must not be used for.

Everything in it is read from the run's files, so a number in a card leads to the run.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvqa.evaluation.phase_scores import Evaluation
from medvqa.evaluation.score import GROUPS, SHOWN, cell
from medvqa.export.merging import MERGED
from medvqa.export.vllm import vllm_command
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
UNKNOWN = "see its own card"
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
) -> str:
    """Return README.md, made from `card.md.jinja`.

    `values` is what export.json holds; `place` names this directory in the examples of use.
    """
    import jinja2

    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    base = values["base"]["name"]
    sources = dict.fromkeys(s for pool in values["data"].values() for s in pool["sources"])
    command = vllm_command(trained, weights=place, base=trained.model.name)
    return environment.from_string(template).render(
        {**values, "trained": trained, "trained_at": values["trained"]},
        front_matter=_front_matter(trained),
        disclaimer=DISCLAIMER,
        results=results(evaluations),
        evaluation=trained.evaluation,
        prompt=trained.prompt,
        place=place,
        quoted_place=shlex.quote(place),
        base_argument=_base_argument(trained),
        is_embedded=base in EMBEDDED,
        vllm=shlex.join(command),
        base_licence=next(
            (text for start, text in BASE_LICENCES.items() if base.startswith(start)), UNKNOWN
        ),
        data_licences={source: DATA_LICENCES.get(source, UNKNOWN) for source in sources},
        json=json.dumps,
        repr=repr,
    )


def _front_matter(trained: Trained) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=None if trained.model.name in EMBEDDED else trained.model.name,
        library_name="peft" if trained.adapter else "transformers",
        pipeline_tag="image-text-to-text",
        license="other",
        license_name="research-only",
        license_link="README.md",
        tags=["medical", "visual-question-answering", "lora", "medvqa"],
    )
    return str(data.to_yaml())


def _base_argument(trained: Trained) -> str:
    """Return the arguments that load the base, as Python code."""
    name = repr(trained.model.name)
    base = f"EMBEDDED[{name}]" if trained.model.name in EMBEDDED else name
    return f"{base}, revision={trained.revision!r}" if trained.revision else base


def results(evaluations: Sequence[Evaluation]) -> str:
    """Return one Markdown table per set: the model beside its baselines."""
    parts = []
    for name in dict.fromkeys(evaluation.set_name for evaluation in evaluations):
        phases = [e for p in PHASES for e in evaluations if (e.set_name, e.phase) == (name, p)]
        columns = [m for m in SHOWN if any(m in s for e in phases for s in e.summary.values())]
        rows = [
            [PHASES[e.phase], group, *(cell(e.summary[group].get(metric)) for metric in columns)]
            for e in phases
            for group in GROUPS
            if group in e.summary
        ]
        head = ["", "questions", *(SHOWN[metric] for metric in columns)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
        parts.append(f"Set `{name}`:\n\n{table}")
    without = "This run had no evaluation set: nothing is known about its answers."
    return "\n\n".join(parts) or without
