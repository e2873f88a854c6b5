"""Hydra's composed config -> the typed one, checked before a directory is made or a job starts."""

import copy
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from medvqa.config.cells import BASIC_SWEEPER, cells, quoted
from medvqa.config.errors import (
    MISTAKES,
    Refused,
    UserError,
    as_user_error,
    explain,
    unknown_option,
)
from medvqa.config.identity import run_id
from medvqa.config.machine import make_directory
from medvqa.config.schema import Config
from medvqa.config.secrets import masked_values
from medvqa.config.typed import typed

# Hydra scans `hydra_plugins` on Python's path for launchers.
PLUGINS = str(Path(__file__).resolve().parents[1] / "plugins")
ONE_ROLE = re.compile(r"data\.([\w.]+\.)?columns\.\w+=")
# Launchers whose jobs run on other machines: a login node may have no GPU.
CLUSTERS = ("slurm", "ray")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values without Hydra's own node."""
    values = OmegaConf.to_container(_without_hydra(cfg), resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def run_name(*, _root_: DictConfig) -> str:
    """Return the run's directory name: the same resolved config gives the same name."""
    choices = _root_.hydra.runtime.choices
    parts = [str(choices.get(group, group)) for group in ("model", "data", "curriculum")]
    return "-".join([*parts, f"s{_root_.seed}", run_id(resolved(_root_))[:8]])


def sweep_name(*, _root_: DictConfig) -> str:
    """Return the grid's directory name: the same command gives the same name."""
    overrides = [*_root_.hydra.overrides.task]
    for varied in ("params", "space"):  # of a grid, of a search
        values = _root_.hydra.sweeper.get(varied) or {}
        overrides += [f"{key}={value}" for key, value in values.items()]
    # A grid that starts over does so in its place.
    overrides = [text for text in overrides if not text.startswith("fresh=")]
    swept = [text.partition("=")[0] for text in overrides if "," in text or "(" in text]
    keys = "+".join(re.sub(r"[^A-Za-z0-9_.]", "", key) for key in swept)[:60]
    digest = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()
    return f"{keys or 'sweep'}-{digest[:8]}"


def checked(cfg: DictConfig, *, runs_here: bool = True) -> Config:
    """Return the typed config.

    Args:
        cfg: As composed.
        runs_here: Whether this machine must have what the config asks for.

    Raises:
        UserError: If a value is missing, out of range, contradicts another, or asks for a GPU
            that is not there.
        OmegaConfBaseException: If a key is unknown (`+typo=1` slips through composition), or an
            interpolation leads nowhere.
    """
    _check_training_option(cfg)
    missing = sorted(OmegaConf.missing_keys(_without_hydra(cfg)))
    if missing:
        raise UserError(f"missing value: give {' '.join(f'{key}=...' for key in missing)}")
    return typed(resolved(cfg), runs_here=runs_here)


def _check_training_option(cfg: DictConfig) -> None:
    """Refuse an unknown `training=`: the group is optional, so Hydra would drop it in silence."""
    if "hydra" not in cfg or not GlobalHydra.instance().is_initialized():
        return  # `compose_cells` has checked it
    choices = cfg.hydra.runtime.choices
    known = GlobalHydra.instance().config_loader().get_group_options("training")
    if choices.get("training") not in (None, choices.get("model"), *known):
        raise UserError(unknown_option("training", str(choices.training), known))


def run_settings(cfg: DictConfig, hydra: Any) -> dict[str, Any]:
    """Return what run.json keeps of a command; see `medvqa.run.run`.

    Args:
        cfg: As composed.
        hydra: Its Hydra node.
    """
    values = resolved(cfg)
    overrides = [str(text) for text in hydra.overrides.task]
    return {
        "config": values,
        "overrides": overrides,
        "run_id": run_id(values),
        "hydra": hydra_files(values, overrides, hydra),
    }


def hydra_files(config: Mapping[str, Any], overrides: Sequence[str], hydra: Any) -> dict[str, str]:
    """Return the files of `.hydra/` by name; Hydra itself would write them before any check."""
    parts: dict[str, Any] = {
        "config": dict(config),
        "overrides": list(overrides),
        "hydra": {"hydra": hydra},
    }
    plain = OmegaConf.to_container(OmegaConf.create(parts), enum_to_str=True)
    assert isinstance(plain, dict)
    return {
        f"{name}.yaml": OmegaConf.to_yaml(OmegaConf.create(part))
        for name, part in masked_values(plain).items()
    }


def config_directory() -> str:
    """Return the checkout's `conf`, or the one that an installed wheel carries."""
    checkout = Path(__file__).resolve().parents[2] / "conf"
    return str(checkout) if (checkout / "config.yaml").is_file() else "pkg://medvqa.conf"


def register() -> None:
    """Make schema, resolvers and launcher known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # Hydra copies the whole store for each group that it lists and each cell that it composes. It
    # copies each entry that it reads once more. That takes two seconds of `--help` on a slow core.
    vars(store)["__deepcopy__"] = lambda memo: store
    OmegaConf.register_new_resolver("medvqa.run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("medvqa.sweep_name", sweep_name, replace=True)
    if PLUGINS not in sys.path:
        sys.path.append(PLUGINS)


def with_roles(overrides: Sequence[str]) -> list[str]:
    """Return the overrides; one of a single role of `columns` may add it to the mapping."""
    return [f"++{text}" if ONE_ROLE.match(text) else text for text in overrides]


def compose_cells(
    overrides: Sequence[str], *, is_sweep: bool, config_dir: Path | None = None
) -> list[tuple[list[str], DictConfig]]:
    """Return what `train.py` would run with these overrides: the swept part and config of each.

    Args:
        overrides: As on the command line.
        is_sweep: Whether values with commas are a grid, as with `-m`.
        config_dir: A folder with groups of the user's own, as with `--config-dir`.

    Raises:
        UserError: If there is no such folder, or a sweeper that searches decides on its cells as
            it goes.
    """
    hydra = _new_hydra(config_dir)
    try:
        config = hydra.compose_config(
            config_name="config",
            overrides=with_roles(overrides),
            run_mode=RunMode.MULTIRUN if is_sweep else RunMode.RUN,
            with_log_configuration=False,
        )
        load = hydra.config_loader.load_sweep_config
        composed: list[tuple[list[str], DictConfig]] = [([], config)]
        if is_sweep:
            composed = [(swept, load(config, job)) for swept, job in cells(config)]
        for _, cell in composed:
            _check_training_option(cell)
    finally:
        GlobalHydra.instance().clear()
    if not composed:
        raise UserError("this sweeper chooses its cells as it goes; check one cell without -m")
    return composed


def _new_hydra(config_dir: Path | None) -> Any:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery

    register()
    GlobalHydra.instance().clear()
    search_path = create_config_search_path(config_directory())
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UserError(f"config_dir: there is no folder {config_dir}")
        place, before = f"file://{config_dir.absolute()}", SearchPathQuery(provider="schema")
        search_path.prepend(provider="command-line", path=place, anchor=before)
    return Hydra.create_main_hydra2(task_name="medvqa", config_search_path=search_path)


class CheckFirst(Callback):
    """Refuses a mistake before Hydra makes a directory, and in a sweep before the first job.

    Hydra itself composes all jobs of a sweep first, but does not check them. A value out of range
    in the last cell would fail only after hours of training the others.
    """

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Check the one config and make its directory."""
        with _refusing():
            checked(config)
            make_directory(_own_directory(config, "run"), "hydra.run.dir=")

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Check each cell, name the one that is refused, and settle the grid's directory.

        Otherwise each cell would name the directory by its own overrides.
        A search makes its directory once its space is checked.
        """
        with _refusing():
            jobs = list(cells(config))
            directory = _own_directory(config, "sweep")
            with open_dict(config):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")
            loader = GlobalHydra.instance().config_loader()
            if jobs:  # a search, which has none here, composes each of its cells once
                _compose_once(loader)
            here = config.hydra.runtime.choices["hydra/launcher"] not in CLUSTERS
            for swept, overrides in jobs:
                try:
                    checked(loader.load_sweep_config(config, overrides), runs_here=here)
                except MISTAKES as error:
                    raise UserError(f"job {' '.join(swept)}: {explain(error)}") from error
            if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                make_directory(directory, "hydra.sweep.dir=")


@contextmanager
def _refusing() -> Iterator[None]:
    """Pass an error on; Hydra would make it a warning and go on."""
    try:
        yield
    except Exception as error:
        raise Refused from error


def _own_directory(config: DictConfig, mode: str) -> Path:
    """Return hydra.run.dir or hydra.sweep.dir, written out in the config, too."""
    text = str(config.hydra[mode].dir)
    if not text.strip() or "\0" in text:
        raise UserError(f"hydra.{mode}.dir={text} names no directory")
    with as_user_error(f"cannot use hydra.{mode}.dir={text}"), open_dict(config):
        config.hydra[mode].dir = str(Path(text).expanduser())
    return Path(config.hydra[mode].dir)


def _compose_once(loader: Any) -> None:
    """Make each cell's config once; Hydra's sweeper and the launcher ask for it again."""
    composed: dict[tuple[str, ...], DictConfig] = {}
    compose = loader.load_sweep_config

    def composed_cell(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        key = (*master_config.hydra.overrides.hydra, *sweep_overrides)
        if key not in composed:
            composed[key] = compose(master_config, list(sweep_overrides))
        return copy.deepcopy(composed[key])

    loader.load_sweep_config = composed_cell
