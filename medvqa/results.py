"""The table that a run ends with."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from medvqa.evaluation import Evaluation
from medvqa.score import SHOWN, cell


def show_results(evaluations: Sequence[Evaluation], directory: Path) -> None:
    """Print a table a set: a row a phase and question type, each number with interval and n."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 180)
    for name in dict.fromkeys(e.set_name for e in evaluations):
        table = Table(
            "", "questions", *SHOWN.values(), title=f"{name}: mean [95 % interval]",
            title_justify="left",
        )  # fmt: skip
        for evaluation in (e for e in evaluations if e.set_name == name):
            table.add_section()
            for position, (group, scores) in enumerate(evaluation.summary.items()):
                phase = evaluation.phase if position == 0 else ""
                table.add_row(phase, group, *(cell(scores.get(metric)) for metric in SHOWN))
        console.print(table)
    console.print(f"everything is in {directory}", soft_wrap=True, highlight=False)


def headline(evaluations: Sequence[Evaluation], sets: Iterable[str]) -> float | None:
    """Return the final overall exact match on the first set; None where there is no set."""
    first = next(iter(sets), None)
    for evaluation in evaluations:
        if evaluation.phase == "final" and evaluation.set_name == first:
            return evaluation.summary["overall"]["exact_match"].mean
    return None
