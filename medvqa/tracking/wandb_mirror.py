"""Weights & Biases as a mirror of the run's files."""

import logging
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.secrets import masked, masked_text, masked_values
from medvqa.config.tracking import MAX_NAME, TrackingConfig
from medvqa.data.example import Example
from medvqa.data.image import load_rgb
from medvqa.tracking import wandb_mode
from medvqa.tracking.record import RunRecord, read_lines

log = logging.getLogger(__name__)

THUMBNAIL_PX = 256
INIT_TIMEOUT_S = 20
COLUMNS = ("id", "question", "references", "prediction", "answer_type", "exact_match", "f1")


class Tracker:
    """Mirrors a run in W&B, or nowhere; a value that W&B refuses costs a warning, not the run.

    Args:
        run: W&B's run; None tracks nothing.
        table_rows: Predictions with images in the table.
    """

    def __init__(self, run: Any = None, *, table_rows: int = 0) -> None:
        self._run = run
        self._table_rows = table_rows
        self._num_refused = 0
        if run is not None:
            # W&B's own step counts calls; curves of several stages need ours.
            run.define_metric("train/global_step")
            run.define_metric("train/*", step_metric="train/global_step")
            run.define_metric("eval/*", step_metric="train/global_step")

    def log(self, values: Mapping[str, float | str], *, step: int) -> None:
        """Log values at the optimiser step, which continues across stages."""
        self._send(lambda: self._run.log({**values, "train/global_step": step}))

    def log_predictions(self, name: str, path: Path, examples: Sequence[Example]) -> None:
        """Log the first rows of a predictions.jsonl with their images as a table."""
        if self._table_rows:
            self._send(lambda: self._log_table(name, read_lines(path), examples))

    def _log_table(
        self, name: str, rows: Sequence[Mapping[str, Any]], examples: Sequence[Example]
    ) -> None:
        import wandb

        by_id = {example.id: example for example in examples}
        table = wandb.Table(columns=["images", *COLUMNS])
        for row in rows[: self._table_rows]:
            pictures = [load_rgb(image) for image in by_id[row["id"]].images]
            for picture in pictures:
                picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            values = [str(row[c]) if c == "references" else row[c] for c in COLUMNS]
            table.add_data([wandb.Image(picture) for picture in pictures], *values)
        self._run.log({f"predictions/{name}": table})
        if len(rows) > self._table_rows:
            log.info("W&B's table %s shows %d of %d rows", name, self._table_rows, len(rows))

    def log_pictures(self, pictures: Mapping[str, Path], *, step: int) -> None:
        """Log PNG files by name, below `pictures/`."""

        def send() -> None:
            import wandb

            images = {f"pictures/{name}": wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log({**images, "train/global_step": step})

        self._send(send)

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Set the run's headline values."""
        self._send(lambda: self._run.summary.update(dict(values)))

    def _send(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # the files are the truth; a mirror must not end the run
            self._num_refused += 1
            log.warning("W&B refused record %d (%s)", self._num_refused, error)


Records = tuple[RunRecord, Tracker]  # run.json and its mirror


def log_step(tracker: Tracker, row: Mapping[str, Any]) -> None:
    """Log a line of metrics.jsonl; each stage also has a loss curve of its own."""
    names = ("loss", "learning_rate", "grad_norm", "num_answer_tokens", "num_tokens")
    values = {f"train/{name}": row[name] for name in names}
    stage = {f"train/loss_{row['stage']}": row["loss"], "train/stage": row["stage"]}
    tracker.log({**values, **stage}, step=int(row["step"]))


@contextmanager
def tracker(
    config: TrackingConfig, directory: Path, settings: Mapping[str, Any]
) -> Iterator[Tracker]:
    """Track the block; if it fails, the W&B run is marked failed.

    Args:
        config: Where to track.
        directory: Run directory; all of W&B's files stay in it.
        settings: `config`, kept nested because callbacks write to the top level; `name` of the
            W&B run, by default the directory's; `sweep`, which joins the runs of a grid unless
            the config names a group.
    """
    mode = wandb_mode.resolve_mode(config.mode, os.environ)
    if mode == "disabled":
        yield Tracker()
        return
    # Images of tables are staged there; in the user's home they would not travel with the run.
    staging = directory / "wandb-data"
    staging.mkdir(parents=True, exist_ok=True)
    options = {
        "project": config.project,
        "entity": config.entity,
        "group": masked_text(config.group or settings.get("sweep") or "")[:MAX_NAME] or None,
        "job_type": "train",
        "name": masked_text(settings.get("name") or directory.name)[:MAX_NAME],
        "tags": masked(config.tags),
        "config": {"medvqa": masked_values(settings.get("config", {}))},
        "dir": str(directory),
    }
    with _replaced(os.environ, "WANDB_DATA_DIR", str(staging)):
        run = _init(mode, directory, options)
        offline = f"offline; to upload: wandb sync {shlex.quote(str(Path(run.dir).parent))}"
        log.info("W&B: %s", offline if run.offline else run.url)
        # `with run` would print a traceback where the command line says one line.
        try:
            yield Tracker(run, table_rows=config.table_rows)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=0)


@contextmanager
def _replaced(environment: MutableMapping[str, str], name: str, value: str) -> Iterator[None]:
    before = environment.get(name)
    environment[name] = value
    try:
        yield
    finally:
        del environment[name]
        if before is not None:
            environment[name] = before


@wandb_mode.refusals()
def _init(mode: str, directory: Path, options: Mapping[str, Any]) -> Any:
    import wandb

    def settings() -> wandb.Settings:  # a new one each time: `init` writes the run's id into it
        # The config has no option to upload code or what is printed, so no variable has one.
        return wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
        )

    arguments = sys.argv
    sys.argv = masked(arguments)  # W&B keeps the command line
    try:
        if mode == "online":
            try:
                online: dict[str, Any] = {"id": _online_id(directory), "resume": "allow"}
                return wandb.init(mode="online", settings=settings(), **online, **options)
            except wandb.errors.CommError as error:
                reason = str(error).partition("\n")[0]
                log.warning("W&B cannot be reached (%s); logging offline", reason)
        # Resuming offline under one id makes two logs that overwrite each other when synced.
        return wandb.init(mode="offline", settings=settings(), **options)
    except wandb.errors.UsageError as error:
        raise UserError(f"W&B: {error}; or use tracking.mode=offline") from error
    finally:
        sys.argv = arguments


def _online_id(directory: Path) -> str:
    path = directory / "wandb_id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()
