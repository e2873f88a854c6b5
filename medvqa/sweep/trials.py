"""The journal of a search: what was tried and how it went, kept over kills."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.sweep.space import Space
from medvqa.tracking import record

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

JOURNAL = "search.journal"
RESUMES = "resumes"  # the trial in whose place this one was put


def open_study(sweep: Path, space: Space, *, direction: str, seed: int) -> "Study":
    """Return the study in the directory's journal, which is begun if there is none.

    What a killed search left running is put back first in the queue, with the same values: they
    name the same run directory, which goes on from its checkpoint.

    Raises:
        UserError: If Optuna is not installed, or the journal is of another search.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'medvqa[search]'") from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _mend(sweep / JOURNAL)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(sweep / JOURNAL))),
        study_name="search",
        direction=optuna.study.StudyDirection[direction.upper()],
        load_if_exists=True,
    )
    wanted = {"space": space, "direction": direction}
    if study.user_attrs.get("search", wanted) != wanted:
        raise UserError(
            f"{sweep} holds a search over another space or in another direction; fresh=true sets "
            "it aside, another hydra.sweep.dir leaves it alone"
        )
    study.set_user_attr("search", wanted)
    _requeue(study)
    # A restarted sampler of the same seed would suggest again what it has suggested before.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _mend(journal: Path) -> None:
    """Undo what a power cut leaves: half a last line, which Optuna cannot read, and its lock.

    The search has a lock of its own, so nobody else is writing.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        log.warning("%s ended with half a line, which is left out", journal)
        with journal.open("r+b") as file:
            file.truncate(len(whole))


def _requeue(study: "Study") -> None:
    from optuna.trial import TrialState

    replaced = _replaced(study)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if trial.number not in replaced:
            study.enqueue_trial(trial.params, user_attrs={RESUMES: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)


def _replaced(study: "Study") -> set[int]:
    return {t.user_attrs[RESUMES] for t in study.trials if RESUMES in t.user_attrs}


def ended(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that count: finished ones, and those that failed by themselves."""
    replaced = _replaced(study)
    return [t for t in study.trials if t.state.is_finished() and t.number not in replaced]


def tell(study: "Study", trial: "Trial", value: float | None, **about: Any) -> None:
    """Record how a trial ended; without a value it failed."""
    from optuna.trial import TrialState

    for name, text in about.items():
        trial.set_user_attr(name, text)
    if value is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


def completed(trials: "Sequence[FrozenTrial]") -> "list[FrozenTrial]":
    """Return those with a value."""
    return [trial for trial in trials if trial.value is not None]


def rows(trials: "Sequence[FrozenTrial]", space: Space) -> list[dict[str, Any]]:
    """Return one row a trial."""
    names = ("directory", "error")
    return [
        {
            "trial": number,
            "state": "finished" if trial.value is not None else "failed",
            "headline": trial.value,
            **{key: trial.params.get(key) for key in space},
            **{name: trial.user_attrs.get(name) for name in names},
        }
        for number, trial in enumerate(trials)
    ]


def write_trials(sweep: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write trials.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    record.write_text(sweep / "trials.csv", text.getvalue())


def show_trials(sweep: Path, table: Sequence[dict[str, Any]]) -> None:
    """Print all trials."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in table[0] if name != "directory"]
    result = Table(title=f"trials.csv and all runs in {sweep}", title_justify="left")
    for name in shown:
        result.add_column(name, overflow="fold")
    for row in table:
        result.add_row(*(_cell(row[name]) for name in shown))
    Console(width=None if Console().is_terminal else 160).print(result)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
