"""The journal of a search: its trials and their results, kept when the search is killed."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.sweep.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

JOURNAL = "search.journal"
RESUMES = "resumes"  # the trial in whose place this one was put


def open_study(sweep: Path, space: Space, *, direction: str, seed: int) -> "Study":
    """Return the study in the directory's journal; a missing journal is created.

    Trials that a killed search left running are queued again first, with the same values. They
    name the same run directory, whose run continues from its checkpoint.

    Raises:
        UserError: If the journal belongs to another search.
    """
    import optuna
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
    to_json = optuna.distributions.distribution_to_json
    search = {"space": {key: to_json(form) for key, form in space.items()}, "direction": direction}
    if study.user_attrs.get("search", search) != search:
        raise UserError(
            f"{sweep} holds a search over another space or in another direction; fresh=true sets "
            "it aside, another hydra.sweep.dir leaves it alone"
        )
    study.set_user_attr("search", search)
    _requeue(study)
    # A restarted sampler of the same seed would suggest again what it has suggested before.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _mend(journal: Path) -> None:
    """Remove the remains of a power cut: half a last line, which Optuna cannot read, and its lock.

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
    """Record how a trial ended; a trial without a value failed."""
    from optuna.trial import TrialState

    for name, text in about.items():
        trial.set_user_attr(name, text)
    study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)


def rows(trials: "Sequence[FrozenTrial]", space: Space) -> list[dict[str, Any]]:
    """Return one row per trial for trials.csv."""
    return [
        {
            "trial": number,
            "state": "finished" if trial.value is not None else "failed",
            "headline": trial.value,
            **{key: trial.params.get(key) for key in space},
            **{name: trial.user_attrs.get(name) for name in ("directory", "error")},
        }
        for number, trial in enumerate(trials)
    ]
