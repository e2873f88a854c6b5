"""The package from Python, by the code path of the commands.

    from medvqa.api import compose, evaluate, report, run, score

    results = [run(compose([f"curriculum={name}"])) for name in ("open_first", "mixed")]
    report(results)  # a notebook shows the page; .write(directory) keeps it

A mistake in the arguments raises `medvqa.config.errors.UserError` with one clear line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.compose import checked, compose_cells, run_settings
from medvqa.config.errors import UserError, mistakes_as_user_errors
from medvqa.config.machine import make_directory
from medvqa.config.schema import Config
from medvqa.config.secrets import masked_log, masked_values
from medvqa.tracking.record import read_json, read_lines
from medvqa.tracking.terminal import html_text, plain_text

if TYPE_CHECKING:
    from rich.table import Table

    from medvqa.data.example import Score
    from medvqa.evaluation.phase_scores import Evaluation
    from medvqa.evaluation.score_file import FileScores
    from medvqa.report.report import Report

__all__ = ["ResolvedConfig", "RunResult", "UserError"]
__all__ += ["compose", "evaluate", "report", "run", "score"]


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """The checked config of one run; printed as YAML.

    Attributes:
        typed: Every setting: `config.typed.training.max_steps`.
        values: The same as plain values, as run.json keeps them.
        overrides: What was asked for.
        directory: Where `python train.py` with these overrides writes.
    """

    typed: Config
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    directory: Path
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(masked_values(dict(self.values))))

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run; a notebook shows its scores.

    Attributes:
        directory: Every file of the run is below it.
        evaluations: The baselines, then the stages in order, then the final one, set by set.
        headline: Final exact match over all questions of the first set; None without a set.
    """

    directory: Path
    evaluations: tuple["Evaluation", ...]
    headline: float | None

    @cached_property
    def record(self) -> dict[str, Any]:
        """What results.json holds: scores with intervals and n, settings, hashes, versions."""
        return read_json(self.directory / "results.json")

    def scores(self, set_name: str = "test", phase: str = "final") -> dict[str, dict[str, "Score"]]:
        """Return group -> metric -> mean with interval and n.

        Raises:
            UserError: If the run has no such evaluation.
        """
        return self._evaluation(set_name, phase).summary

    def predictions(self, set_name: str = "test", phase: str = "final") -> list[dict[str, Any]]:
        """Return each question with references, answer and scores.

        Raises:
            UserError: If the run has no such evaluation.
        """
        self._evaluation(set_name, phase)
        path = self.directory / "evaluation" / phase / set_name / "predictions.jsonl"
        return list(read_lines(path))

    def _evaluation(self, set_name: str, phase: str) -> "Evaluation":
        by_place = {(e.set_name, e.phase): e for e in self.evaluations}
        if (set_name, phase) not in by_place:
            known = ", ".join("/".join(place) for place in by_place) or "none"
            raise UserError(f"no evaluation {set_name}/{phase}; the run has {known}")
        return by_place[set_name, phase]

    def _tables(self) -> list["Table"]:
        from medvqa.evaluation.results import result_tables

        return result_tables(self.evaluations, self.directory)

    def __str__(self) -> str:
        return f"{plain_text(*self._tables())}\n{self.directory}"

    def _repr_html_(self) -> str:
        return html_text(*self._tables()) + f"<p>{escape(str(self.directory))}</p>"


def compose(
    overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, runs_here: bool = True
) -> ResolvedConfig:
    """Return the config that `python train.py` would run with the same overrides.

    Args:
        overrides: `group=option` and `key=value`, as on the command line.
        config_dir: A folder with groups of your own, such as `curriculum/mine.yaml`.
        runs_here: Whether this machine must have the GPUs that the config asks for.

    Raises:
        UserError: If an override is wrong or contradicts another.
    """
    if isinstance(overrides, str):  # whose characters would be taken for overrides
        raise UserError(f"overrides is a list: write [{overrides!r}]")
    place = None if config_dir is None else Path(config_dir)
    with mistakes_as_user_errors():
        ((_, cfg),) = compose_cells(overrides, is_sweep=False, config_dir=place)
        settings = run_settings(cfg, cfg.hydra)
        return ResolvedConfig(
            typed=checked(cfg, runs_here=runs_here),
            values=settings["config"],
            overrides=tuple(settings["overrides"]),
            directory=Path(str(cfg.hydra.run.dir)).expanduser(),
            settings=settings,
        )


def run(
    config: ResolvedConfig, *, directory: str | Path | None = None, verbose: bool = True
) -> RunResult:
    """Train and evaluate; continue a half-done run, read a finished one.

    Args:
        config: Of `compose`.
        directory: Where the run writes, in place of `config.directory`.
        verbose: Print what the command logs; `medvqa.log` keeps the lines in any case.

    Raises:
        UserError: If data, model or directory cannot be used, or the directory holds another run.
        DivergenceError: A `UserError`, if a loss is not finite.
    """
    from medvqa.evaluation.results import headline
    from medvqa.run import ProcessState
    from medvqa.run import run as run_once

    place = config.directory if directory is None else Path(directory)
    with mistakes_as_user_errors():
        make_directory(place, "another directory=")
        with masked_log(place / "medvqa.log", verbose=verbose):
            evaluations = run_once(config.typed, place, config.settings, ProcessState())
    return RunResult(
        directory=place,
        evaluations=tuple(evaluations),
        headline=headline(evaluations, config.typed.data.evaluation),
    )


def evaluate(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    directory: str | Path | None = None,
    verbose: bool = True,
) -> RunResult:
    """Answer and score without training, as `medvqa evaluate` does.

    Args:
        overrides: `model=`, `data=`, and `adapter=DIR`, or `endpoint=URL` with `model_name=NAME`.
        config_dir: See `compose`.
        directory: See `run`.
        verbose: See `run`.

    Raises:
        UserError: See `compose` and `run`.
    """
    config = compose([*overrides, "only_evaluate=true"], config_dir=config_dir)
    return run(config, directory=directory, verbose=verbose)


def report(
    runs: RunResult | str | Path | Sequence[RunResult | str | Path],
    *,
    title: str | None = None,
    pictures: bool = True,
    **settings: Any,
) -> "Report":
    """Compare runs and grids, as `medvqa report` does; a notebook shows the page.

    Args:
        runs: One or several results of `run`, or directories of runs and grids.
        title: Of the page.
        pictures: Whether the page shows the questions' pictures.
        settings: Fields of `medvqa.report.matching.Settings`: `within`, `baseline`,
            `allow_unequal`, `seeds_are_paired`, `num_samples`.

    Raises:
        UserError: If there is no run, or a pair may not be compared.
    """
    from medvqa.report.matching import Settings
    from medvqa.report.report import read_report

    _check_names("report has no setting", settings, Settings)
    several = [runs] if isinstance(runs, RunResult | str | Path) else runs
    places = [one.directory if isinstance(one, RunResult) else Path(one) for one in several]
    return read_report(places, Settings(**settings), title=title, with_pictures=pictures)


def score(file: str | Path, protocol: str = "medvqa", **options: Any) -> "FileScores":
    """Score an answers file, as `medvqa score` does; a notebook shows the table.

    Args:
        file: Answers: JSON Lines, a JSON array, CSV or TSV.
        protocol: A protocol of the field, several with commas, or `all`.
        options: Fields of `medvqa.evaluation.score_file.ScoreOptions`: `types`, `against`,
            `columns`, `judge`, `normalizer`, `bertscore`, `layers`, `tolerance`.

    Raises:
        UserError: If the file cannot be read, or an option is unknown.
    """
    from medvqa.evaluation.score_file import ScoreOptions, score_file

    _check_names("score has no option", options, ScoreOptions)
    if options.get("against") is not None:
        options["against"] = Path(options["against"])
    return score_file(ScoreOptions(file=Path(file), protocol=protocol, **options))


def _check_names(complaint: str, settings: Mapping[str, Any], kind: type[Any]) -> None:
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            raise UserError(f"{complaint} {name!r}; it has {', '.join(known)}")
