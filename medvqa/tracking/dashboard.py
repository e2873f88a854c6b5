"""`medvqa dashboard`: a W&B workspace whose panels name what our runs log."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.tracking.record import read_json, write_json
from medvqa.tracking.wandb_mode import has_key

NAME = "medvqa: data and order"
STEP = "train/global_step"
MODEL, CURRICULUM = "medvqa.model.name", "medvqa.curriculum.name"
METRICS = {"exact_match": "exact match", "f1": "token F1", "bertscore_f1": "BERTScore F1"}
CONFIDENCE = {
    "calibration_error": "expected calibration error",
    "risk_coverage_area": "area under risk-coverage",
    "confidence_auroc": "AUROC of confidence",
}
GROUPS = ("overall", "open", "closed")
MEANS = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
PICTURES = ("loss", "metrics", "confidence", "samples")


@dataclass(frozen=True)
class Logged:
    """What the runs have evaluated; panels name nothing else.

    Attributes:
        sets: Evaluation sets.
        stages: Stages of all curricula, in the order in which they are met.
        phases: Evaluations of the model, `zero_shot`, `after_<stage>`, ..., `final` last.
        metrics: Of METRICS.
        confidence: Of CONFIDENCE.
        probes: `<set>/probes/<probe>/<rate>`.
    """

    sets: tuple[str, ...] = ("test",)
    stages: tuple[str, ...] = ("mixed",)
    phases: tuple[str, ...] = ("zero_shot", "final")
    metrics: tuple[str, ...] = tuple(METRICS)
    confidence: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()


def read_logged(directories: Sequence[Path]) -> Logged:
    """Return what the runs at or below the directories have logged.

    Raises:
        UserError: If there is no finished run.
    """
    paths = [
        path
        for directory in directories
        for path in sorted(directory.rglob("results.json"))
        if not any(part.startswith("previous-") for part in path.parts)
    ]
    if not paths:
        places = ", ".join(map(str, directories))
        raise UserError(f"{places}: no finished run (results.json) there; give runs or sweeps")
    results = [read_json(path) for path in paths]
    scores = [score for result in results for score in result["scores"]]
    # The majority baseline is no model's, so a run does not log it.
    phases = _distinct(s["phase"] for s in scores if s["phase"] not in ("majority", "final"))
    return Logged(
        sets=_distinct(score["set"] for score in scores),
        stages=_distinct(s["name"] for result in results for s in result["budget"]["stages"]),
        phases=(*sorted(phases, key=lambda phase: phase.startswith("after_")), "final"),
        metrics=_distinct(s["metric"] for s in scores if s["metric"] in METRICS),
        confidence=_distinct(s["metric"] for s in scores if s["metric"] in CONFIDENCE),
        probes=_distinct(
            f"{probe['set_name']}/probes/{probe['probe']}/{rate}"
            for result in results
            for probe in result.get("probes", ())
            for rate in probe["scores"]
            if rate in ("changed", "affirms")
        ),
    )


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def workspace(project: str, entity: str, logged: Logged) -> Any:
    """Return the workspace; needs neither key nor network.

    Raises:
        UserError: If wandb-workspaces is not installed.
    """
    ws, wr, expr = _libraries()
    first = logged.sets[0]
    columns = [f"summary:eval/{first}/final/overall/{metric}" for metric in logged.metrics]
    return ws.Workspace(
        name=NAME,
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=name, panels=panels, is_open=number == 0)
            for number, (name, panels) in enumerate(_sections(wr, logged).items())
            if panels
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            # Model x curriculum; the runs of a group differ in their seeds.
            groupby=[expr.Config(MODEL), expr.Config(CURRICULUM)],
            pinned_columns=columns,
        ),
    )


def _sections(wr: ModuleType, logged: Logged) -> dict[str, list[Any]]:
    by_curriculum = {"groupby": wr.Config(CURRICULUM), **MEANS}

    def bars(title: str, *places: str, **options: Any) -> Any:
        metrics = [f"eval/{place}" for place in places]
        return wr.BarPlot(title=title, metrics=metrics, range_x=(0, 1), **options)

    def final(names: Mapping[str, str], shown: Sequence[str]) -> list[Any]:
        title, place = "{}: {}, final, by curriculum", "{}/final/overall/{}"
        return [
            bars(title.format(name, names[metric]), place.format(name, metric), **by_curriculum)
            for name, metric in product(logged.sets, shown)
        ]

    def curve(title: str, name: str, **options: Any) -> Any:
        y = [f"train/{name}"]
        return wr.LinePlot(title=title, x=STEP, y=y, title_x="optimiser step", **options)

    loss = curve("loss", "loss", smoothing_type="average", smoothing_factor=0.5)
    stages = [curve(f"loss in stage {stage}", f"loss_{stage}") for stage in logged.stages]
    tables = [wr.WeavePanelSummaryTable(table_name=f"predictions/{n}") for n in logged.sets]
    rest = [curve("learning rate", "learning_rate"), curve("gradient norm", "grad_norm")]
    return {
        "Grid": final(METRICS, logged.metrics),
        "Curves by stage": [loss, *stages, *rest],
        "Metrics by type": [
            bars(
                f"{name}, {group}: {METRICS[metric]}, from zero-shot to final",
                *(f"{name}/{phase}/{group}/{metric}" for phase in logged.phases),
            )
            for name, metric, group in product(logged.sets, logged.metrics, GROUPS)
        ],
        "Confidence": final(CONFIDENCE, logged.confidence),
        "Hallucination probes": [
            bars(place.replace("/probes/", ", ").replace("/", ": "), place, **by_curriculum)
            for place in logged.probes
        ],
        "Predictions": [*tables, _pictures(wr)],
        "Settings": [wr.RunComparer(diff_only="split")],
    }


def _pictures(wr: ModuleType) -> Any:
    keys = [f"pictures/{name}" for name in PICTURES]
    return wr.MediaBrowser(title="pictures of each run", media_keys=keys, num_columns=3)


def specification(board: Any) -> dict[str, Any]:
    """Return the workspace as W&B stores it."""
    # The library has no public way to see a workspace without saving it.
    model = board._to_model()
    dumped: dict[str, Any] = model.model_dump(mode="json", by_alias=True)
    return dumped


def _libraries() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            'medvqa dashboard needs wandb-workspaces: pip install -e ".[dashboard]"'
        ) from error
    return ws, wr, expr


def main_dashboard(argv: Sequence[str]) -> None:
    """Make a W&B workspace: the grid, curves by stage, metrics by type, predictions."""
    parser = CommandParser(
        main_dashboard,
        {
            "medvqa dashboard multirun/GRID --json dashboard.json": "needs no network",
            "medvqa dashboard multirun/GRID --save": "needs a key and a network",
        },
    )
    add = parser.group("what the workspace shows")
    add("runs", nargs="*", type=Path, help="runs or grids whose sets and stages it shall show")
    add("--project", default="medvqa", metavar="NAME", help="as tracking.project (default medvqa)")
    add("--entity", metavar="NAME", help="user or team; WANDB_ENTITY or the key's own by default")
    add = parser.group("output")
    add("--json", type=Path, metavar="FILE", help="write the specification there")
    add("--save", action="store_true", help="save the workspace at W&B: needs key and network")
    options = parser.parse_args(argv)
    if options.save and not has_key(os.environ):
        raise UserError(
            "--save needs a W&B key: run `wandb login` or set WANDB_API_KEY; --json FILE needs none"
        )
    logged = read_logged(options.runs) if options.runs else Logged()
    entity = options.entity or os.environ.get("WANDB_ENTITY") or ""
    board = workspace(options.project, entity, logged)
    if options.json:
        write_json(options.json, specification(board))
    for section in board.sections:
        sys.stdout.write(f"{section.name}: {len(section.panels)} panels\n")
    hint = "--json FILE writes it, --save puts it online"
    sys.stdout.write(f"written to {options.json}\n" if options.json else f"{hint}\n")
    if options.save:
        _save(board)


def _save(board: Any) -> None:
    import wandb

    try:
        board.entity = board.entity or wandb.Api().default_entity
        board.save()
    except Exception as error:  # W&B's client raises many types of its own and of its libraries
        reason = str(error).partition("\n")[0]
        raise UserError(f"W&B did not take the workspace: {reason}") from error
