"""A search in place of a grid: Optuna suggests, the launcher runs, a journal remembers."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from medvqa.config.compose import CLUSTERS, checked
from medvqa.config.errors import MISTAKES, UserError, explain
from medvqa.config.machine import make_directory
from medvqa.config.secrets import masked
from medvqa.sweep.job import State, read_status, run_json
from medvqa.sweep.launcher import SweepError
from medvqa.sweep.space import Space, extremes, override, read_space
from medvqa.sweep.status import sweep_json
from medvqa.sweep.trials import JOURNAL, ended, open_study, rows, tell
from medvqa.tracking import record
from medvqa.tracking.files import PATIENCE_S, directory_lock
from medvqa.tracking.terminal import console, table

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

log = logging.getLogger(__name__)

# What a single run of the best values has no use for.
SEARCH_ONLY = (
    *("-m", "--multirun", "fresh=", "hydra.mode=", "hydra.sweep"),
    *("hydra.launcher", "hydra/launcher"),
)
FAILURES = (State.failed, State.diverged, State.killed, State.timed_out)


class OptunaSweeper(Sweeper):
    """Varies the keys of `space`; the same command goes on where it was ended.

    Attributes:
        num_trials: How many shall have ended, finished or failed.
        batch_size: Trials that the launcher gets at once.
    """

    def __init__(
        self, num_trials: int, batch_size: int, seed: int, direction: str, space: Any
    ) -> None:
        self.num_trials, self.batch_size = num_trials, batch_size
        self.seed, self.direction = seed, direction
        self.space_values: Any = (
            OmegaConf.to_container(space) if OmegaConf.is_config(space) else space
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives."""
        self.composed, self.loader = config, hydra_context.config_loader
        self.batches = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search until so many trials have ended; say which was best.

        Raises:
            UserError: If the space is wrong, or the directory is another search's.
            SweepError: If no trial finished.
        """
        space = self._space(arguments)
        _check_chosen_set(self.composed.data.evaluation)
        self._check_each_value(space, arguments)
        sweep = Path(str(self.composed.hydra.sweep.dir)).resolve()
        make_directory(sweep, "hydra.sweep.dir=")
        # The launcher locks the sweep for each batch; this lock is held between them as well.
        with directory_lock(sweep / ".search", patience_s=PATIENCE_S):
            if self.composed.fresh:
                _set_aside(sweep)
            study = open_study(sweep, space, direction=self.direction, seed=self.seed)
            self._search(study, space, arguments, sweep)
            _conclude(study, space, sweep)

    def _space(self, arguments: Sequence[str]) -> Space:
        """Return what is searched: a key that the command line sets is not."""
        wrong = [n for n in ("num_trials", "batch_size") if not _is_count(getattr(self, n))]
        if wrong:
            raise UserError(f"hydra.sweeper.{wrong[0]} must be a whole number, 1 or more")
        if self.direction not in ("maximize", "minimize"):
            raise UserError("hydra.sweeper.direction must be maximize or minimize")
        space = read_space(self.space_values)
        overrides = OverridesParser.create().parse_overrides(list(arguments))
        for text in (o.input_line for o in overrides if o.is_sweep_override()):
            raise UserError(f"{text}: a search varies hydra.sweeper.space only; give one value")
        fixed = {override.get_key_element().lstrip("+") for override in overrides}
        if not set(space) - fixed:
            raise UserError("the command line sets every key of hydra.sweeper.space; leave one out")
        return {key: form for key, form in space.items() if key not in fixed}

    def _check_each_value(self, space: Space, arguments: list[str]) -> None:
        """Compose each value alone, so that a typo is not found out by a trial hours later."""
        for key, form in space.items():
            for value in extremes(form):
                text = override(key, value)
                error = self._refusal([*arguments, text])
                if error is not None:
                    raise UserError(f"hydra.sweeper.space: {text}: {explain(error)}") from error

    def _refusal(self, overrides: list[str]) -> Exception | None:
        here = self.composed.hydra.runtime.choices["hydra/launcher"] not in CLUSTERS
        try:
            checked(self.loader.load_sweep_config(self.composed, overrides), runs_here=here)
        except MISTAKES as error:
            return error
        return None

    def _search(self, study: "Study", space: Space, arguments: list[str], sweep: Path) -> None:
        while (left := self.num_trials - len(ended(study))) > 0:
            job = 1 + max([-1, *(t.user_attrs.get("job", -1) for t in ended(study))])
            batch = []
            for trial in [study.ask(space) for _ in range(min(left, self.batch_size))]:
                overrides = [*arguments, *(override(*item) for item in trial.params.items())]
                error = self._refusal(overrides)
                if error is None:
                    batch.append((trial, overrides))
                else:  # values that are legal alone but not together
                    log.warning("trial %d is refused: %s", trial.number, explain(error))
                    tell(study, trial, None, error=explain(error))
            self._run(study, batch, job, sweep)
            record.write_csv(sweep / "trials.csv", rows(ended(study), space))

    def _run(
        self, study: "Study", batch: "list[tuple[Trial, list[str]]]", first: int, sweep: Path
    ) -> None:
        if not batch:
            return
        stopped: SweepError | None = None
        try:
            self.batches.launch([overrides for _, overrides in batch], first)
        except SweepError as error:
            stopped = error
        has_ended = [_settle(study, trial, first + n, sweep) for n, (trial, _) in enumerate(batch)]
        if stopped is not None and not all(has_ended):  # by hydra.launcher.fail_fast
            raise stopped


def _conclude(study: "Study", space: Space, sweep: Path) -> None:
    trials = rows(ended(study), space)
    record.write_csv(sweep / "trials.csv", trials)
    columns = [name for name in trials[0] if name != "directory"]
    cells = ([_cell(trial[name]) for name in columns] for trial in trials)
    console().print(table(f"trials.csv and all runs in {sweep}", columns, cells))
    num_failed = sum(trial["headline"] is None for trial in trials)
    if num_failed:
        log.warning("%d of %d trials failed", num_failed, len(trials))
    if num_failed == len(trials):
        raise SweepError(f"none of {num_failed} trials finished; their logs are in {sweep}")
    best = study.best_trial
    arguments = [text for text in sys.argv[1:] if not text.lstrip("+").startswith(SEARCH_ONLY)]
    values = [override(*item) for item in best.params.items()]
    command = shlex.join(["python", "train.py", *masked(arguments), "hydra.mode=RUN", *values])
    sys.stdout.write(f"best: {best.value:.4f} on the validation set\n{command}\n")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_chosen_set(sets: DictConfig) -> None:
    """Raise a `UserError` if the headline would be of test rows, or if there would be none.

    What is the best of many trials on a set is too good there: it cannot be that set's result.
    """
    if not sets:
        raise UserError(
            "a search chooses by its first evaluation set, and data.evaluation is empty"
        )
    name, chosen = next((str(name), chosen) for name, chosen in sets.items())
    for rows_of in (chosen, *chosen.parts.values()):
        split = str(rows_of.split)
        if rows_of.name != "mixture" and (split == "all" or split.startswith("test")):
            raise UserError(
                f"a search chooses by its first evaluation set, but data.evaluation.{name} holds "
                f"test rows (split={split}); use data=phantom_validation, data=vqa_rad_validation, "
                f"or data.evaluation.{name}.split=validation where the data set has one"
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _set_aside(sweep: Path) -> None:
    """Keep the journal of the search that is begun anew; the launcher keeps its runs."""
    if (sweep / JOURNAL).exists():
        number = 1 + len(list(sweep.glob(f"previous-*-{JOURNAL}")))
        (sweep / JOURNAL).rename(sweep / f"previous-{number}-{JOURNAL}")


def _settle(study: "Study", trial: "Trial", number: int, sweep: Path) -> bool:
    """Tell what the job's files say; return whether it ended."""
    (entry,) = [entry for entry in sweep_json(sweep)["jobs"] if entry["number"] == number]
    directory = sweep / entry["directory"]
    run, status = run_json(directory), read_status(directory)
    about = {"job": number, "directory": entry["directory"]}
    if run.get("state") == record.FINISHED and run.get("run_id") == entry["run_id"]:
        value = run.get("headline")
        error = {"error": "no evaluation set, so no headline"} if value is None else {}
        tell(study, trial, value, **about, **error)
        return True
    if status.state in FAILURES:
        tell(study, trial, None, **about, error=f"{status.state.value}: {status.error}")
        return True
    return False
