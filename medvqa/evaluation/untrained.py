"""`medvqa evaluate`: answer and score without training; the records are those of a run.

The model is any base, a base with any saved adapter, or whatever an OpenAI-compatible server
answers with. The same command continues what was interrupted.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.model import Backend
from medvqa.config.schema import Config
from medvqa.data.pool import Pool
from medvqa.data.verification import check_images
from medvqa.evaluation.answering import by_model, by_server
from medvqa.evaluation.bertscore import check_encoder
from medvqa.evaluation.endpoint import Endpoint
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.phases import Phases
from medvqa.evaluation.probing import more_questions
from medvqa.evaluation.results import record_results
from medvqa.models.encode import encoder_of
from medvqa.models.load import adapter_place, load_base, load_peft_adapter
from medvqa.models.source import check_base
from medvqa.tracking import identity
from medvqa.tracking.record import RunRecord
from medvqa.tracking.wandb_mirror import Records, tracker
from medvqa.tracking.wandb_mode import check_key

NO_PLAN: dict[str, Any] = {"num_steps": 0, "order_sha256": None, "warmup_steps": 0, "stages": []}
NO_TRAINING: dict[str, Any] = {"num_steps": 0, "final_loss": None, "average_loss": None}


def evaluate_only(
    config: Config,
    directory: Path,
    settings: Mapping[str, Any],
    rows: Callable[[], Mapping[str, str]],
    sets: Callable[[], Mapping[str, Pool]],
) -> None:
    """Answer every evaluation set and write the records.

    Args:
        config: The checked config.
        directory: Every file of the run is below it.
        settings: See `medvqa.run.run`.
        rows: Gives the hash of each set's rows.
        sets: Gives the evaluation sets.

    Raises:
        UserError: If there is nothing to ask, or the model, adapter or server cannot be used.
    """
    keeper = RunRecord(directory / "run.json", settings)
    with keeper.recording():
        with keeper.phase("data"):
            _check(config)
            pools = sets()
            if not pools:
                raise UserError("data names no evaluation set, so there is nothing to evaluate")
            questions = {name: list(pool.examples) for name, pool in pools.items()}
            check_images([example for examples in questions.values() for example in examples])
        data = {name: pool.describe() for name, pool in pools.items()}
        keeper.update(data=data, plan=NO_PLAN, training=NO_TRAINING, world_size=1)
        keeper.update(code=identity.code(), rows=rows())
        with tracker(config.tracking, directory, settings) as mirror:
            records = (keeper, mirror)
            evaluator = Evaluator(
                questions, config.evaluation, directory=directory, seed=config.seed
            )
            final = _phases(config, evaluator, records).after_training(0)
            record_results(directory, records, final, questions)
        keeper.finish()


def _check(config: Config) -> None:
    check_key(config.tracking)
    check_encoder(config.evaluation.bertscore)
    if not config.endpoint:
        check_base(config.model)
    if config.adapter:
        adapter_place(Path(config.adapter))


def _phases(config: Config, evaluator: Evaluator, records: Records) -> Phases:
    keeper, own = records[0], config.evaluation
    if config.endpoint:
        assert config.model_name
        keeper.update(model={"source": config.endpoint, "served_as": config.model_name})
        endpoint = Endpoint(config.endpoint, config.model_name, config.prompt, own.max_new_tokens)
        return Phases(evaluator, by_server(endpoint), records)
    with keeper.phase("load"):
        loaded = load_base(replace(config.model, backend=Backend.transformers))
        if config.adapter:
            loaded = load_peft_adapter(loaded, Path(config.adapter))
    keeper.update(model={**loaded.describe(), "adapter": config.adapter})
    encoder = encoder_of(loaded, config.model, None, config.prompt)
    for examples in evaluator.sets.values():
        encoder.check_lengths(examples)
        encoder.check_lengths(more_questions(own, examples, config.seed))
    return Phases(evaluator, by_model(loaded, encoder, own), records, loaded)
