"""Weights & Biases as a mirror of the run's files."""

import logging
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from medvqa.config.errors import UserError
from medvqa.config.tracking import TrackingConfig, TrackingMode
from medvqa.data.example import Example
from medvqa.data.image import load_rgb
from medvqa.tracking.record import masked, read_lines

log = logging.getLogger(__name__)

THUMBNAIL_PX = 256
INIT_TIMEOUT_S = 20
COLUMNS = ("id", "question", "references", "prediction", "answer_type", "exact_match", "f1")


class Tracker(Protocol):
    """What the run tells a tracker."""

    def log(self, values: Mapping[str, float | str], *, step: int) -> None:
        """Log values at the optimiser step, which goes on across stages."""

    def log_predictions(self, name: str, path: Path, examples: Sequence[Example]) -> None:
        """Log a predictions.jsonl with its images as a table."""

    def log_pictures(self, pictures: Mapping[str, Path], *, step: int) -> None:
        """Log PNG files by name."""

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Set the run's headline values."""


class NoTracker:
    """Tracks nothing."""

    def log(self, values: Mapping[str, float | str], *, step: int) -> None:
        """Do nothing."""

    def log_predictions(self, name: str, path: Path, examples: Sequence[Example]) -> None:
        """Do nothing."""

    def log_pictures(self, pictures: Mapping[str, Path], *, step: int) -> None:
        """Do nothing."""

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Do nothing."""


class WandbTracker:
    """Tracks with a W&B run; what W&B refuses costs a warning, not the run."""

    def __init__(self, run: Any, *, table_rows: int) -> None:
        self._run = run
        self._table_rows = table_rows
        self._num_refused = 0
        # W&B's own step counts calls; curves of several stages need ours.
        run.define_metric("train/global_step")
        run.define_metric("train/*", step_metric="train/global_step")
        run.define_metric("eval/*", step_metric="train/global_step")

    def log(self, values: Mapping[str, float | str], *, step: int) -> None:
        """Log values at the optimiser step."""
        with self._mirroring():
            self._run.log({**values, "train/global_step": step})

    def log_predictions(self, name: str, path: Path, examples: Sequence[Example]) -> None:
        """Log the first rows with their images as a table."""
        import wandb

        if self._table_rows == 0:
            return
        by_id = {example.id: example for example in examples}
        rows = read_lines(path)
        table = wandb.Table(columns=["images", *COLUMNS])
        for row in rows[: self._table_rows]:
            pictures = [load_rgb(image) for image in by_id[row["id"]].images]
            for picture in pictures:
                picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            values = [str(row[c]) if c == "references" else row[c] for c in COLUMNS]
            table.add_data([wandb.Image(picture) for picture in pictures], *values)
        with self._mirroring():
            self._run.log({f"predictions/{name}": table})
        if len(rows) > self._table_rows:
            log.info("W&B's table %s shows %d of %d rows", name, self._table_rows, len(rows))

    def log_pictures(self, pictures: Mapping[str, Path], *, step: int) -> None:
        """Log PNG files by name, below `pictures/`."""
        import wandb

        with self._mirroring():
            images = {f"pictures/{name}": wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log({**images, "train/global_step": step})

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Set the run's headline values."""
        with self._mirroring():
            self._run.summary.update(dict(values))

    @contextmanager
    def _mirroring(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the files are the truth; a mirror must not end the run
            self._num_refused += 1
            log.warning("W&B refused record %d (%s)", self._num_refused, error)


@contextmanager
def tracker(
    config: TrackingConfig,
    *,
    directory: Path,
    group: str | None,
    settings: Mapping[str, Any],
    name: str | None = None,
) -> Iterator[Tracker]:
    """Track the block; if it fails, the W&B run is marked failed.

    Args:
        config: Where to track.
        directory: Run directory; all of W&B's files stay in it.
        group: Joins the runs of a sweep, unless the config names a group.
        settings: The resolved config, kept nested: callbacks write to the top level.
        name: Of the W&B run; the directory's if null.
    """
    mode = resolve_mode(config.mode, os.environ)
    if mode == "disabled":
        yield NoTracker()
        return
    with _staging(directory / "wandb-data"):
        run = _init(config, mode, directory, (name or directory.name, group or None), settings)
        log.info("W&B: %s", f"medvqa sync {directory}" if run.offline else run.url)
        # `with run` would print a traceback where the command line says one line.
        try:
            yield WandbTracker(run, table_rows=config.table_rows)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=0)


@contextmanager
def _staging(directory: Path) -> Iterator[None]:
    """Stage table images here; in the user's home they would not travel with the run."""
    before = os.environ.get("WANDB_DATA_DIR")
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(directory)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def resolve_mode(wanted: TrackingMode, environment: Mapping[str, str]) -> str:
    """Return W&B's mode: its own variable first, then the config; `auto` goes by the key.

    Raises:
        UserError: If the variable is no mode, or online is asked for without a key.
    """
    mode = environment.get("WANDB_MODE") or wanted.value
    if mode not in TrackingMode.__members__:
        known = ", ".join(TrackingMode.__members__)
        raise UserError(f"WANDB_MODE={mode} is unknown; use one of {known}")
    if mode in ("offline", "disabled"):
        return mode
    if has_key(environment):
        return "online"
    if mode == "online":
        raise UserError(
            "tracking.mode=online needs a W&B key: run `wandb login`, set WANDB_API_KEY, or use "
            "tracking.mode=offline"
        )
    return "offline"


def has_key(environment: Mapping[str, str]) -> bool:
    """Return whether a W&B key is set or filed; asks no server."""
    if environment.get("WANDB_API_KEY"):
        return True
    import wandb

    # Where a key is filed depends on the server, whose address W&B's settings know.
    from wandb.sdk.lib.wbauth import read_netrc_auth

    return read_netrc_auth(host=wandb.setup().settings.base_url) is not None


def _init(
    config: TrackingConfig,
    mode: str,
    directory: Path,
    name_and_group: tuple[str, str | None],
    settings: Mapping[str, Any],
) -> Any:
    import wandb

    name, group = name_and_group

    options: dict[str, Any] = {
        "project": config.project,
        "entity": config.entity,
        "group": config.group or group,
        "job_type": "train",
        "name": name,
        "tags": list(config.tags),
        "config": {"medvqa": dict(settings)},
        "dir": str(directory),
    }

    def quiet() -> wandb.Settings:  # a new one each time: `init` writes the run's id into it
        return wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off")

    arguments = sys.argv
    sys.argv = masked(arguments)  # W&B keeps the command line
    try:
        if mode == "online":
            try:
                online: dict[str, Any] = {"id": _online_id(directory), "resume": "allow"}
                return wandb.init(mode="online", settings=quiet(), **online, **options)
            except wandb.errors.CommError as error:
                reason = str(error).partition("\n")[0]
                log.warning("W&B cannot be reached (%s); logging offline", reason)
        # Resuming offline under one id makes two logs that overwrite each other when synced.
        return wandb.init(mode="offline", settings=quiet(), **options)
    except wandb.errors.UsageError as error:
        raise UserError(f"W&B: {error}; or use tracking.mode=offline") from error
    finally:
        sys.argv = arguments


def _online_id(directory: Path) -> str:
    path = directory / "wandb_id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()
