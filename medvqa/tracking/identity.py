"""Whether a directory holds the same run: equal settings, equal rows, equal code."""

import ast
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medvqa.config.errors import DivergenceError, UserError
from medvqa.config.identity import flat, results_only
from medvqa.config.secrets import masked_values
from medvqa.config.typed import with_defaults
from medvqa.data.storage.cache import remembered
from medvqa.tracking.environment import version
from medvqa.tracking.files import check_places, has_results
from medvqa.tracking.record import DIVERGED, FINISHED, read_run

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
# They describe, start or use runs; everything else can change a result.
NOT_COMPUTING = {
    *("__init__.py", "api.py", "cli.py", "config", "tracking", "export", "sweep", "report"),
    *("preflight", "serve", "plugins", "weights"),
}
LIBRARIES = ("torch", "transformers")
SHOWN_LENGTH = 60  # characters of a setting's value
SHOWN = 12  # differences in one message
OWNERS = {
    "base": "the files of the base",
    "adapter": "the files of the adapter",
    "training": "the training rows",
}
WAYS_OUT = "say fresh=true to start over (the old run is kept aside), or give another directory"
Rows = Callable[[], Mapping[str, str]]


def code(engine: str | None = None) -> dict[str, str | None]:
    """Return the hash of the code that computes, its libraries' versions, the resolved engine."""
    versions = {name: version(name) for name in LIBRARIES}
    return {"sha256": _code_sha256(), **versions, "engine": engine}


@functools.cache
def _code_sha256() -> str:
    """Return the hash of code and tables; comments, docstrings and layout do not count."""
    texts = {path: path.read_text(encoding="utf-8") for path in computing_files()}

    def compute() -> bytes:
        digest = hashlib.sha256()
        for path, text in texts.items():
            digest.update(f"{path.relative_to(PACKAGE)}\n{MEANINGS[path.suffix](text)}\n".encode())
        return digest.hexdigest().encode()

    # Reading the files takes 10 ms, parsing them 270 ms at the start of each run.
    origin = [sys.version, Path(__file__).read_text(encoding="utf-8"), *map(str, texts.items())]
    key = hashlib.sha256("\n".join(origin).encode()).hexdigest()
    return remembered(f"code {key}", compute).decode()


def computing_files() -> list[Path]:
    """Return the modules and tables that can change a result."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.suffix in MEANINGS)
    return [path for path in files if path.relative_to(PACKAGE).parts[0] not in NOT_COMPUTING]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Return the tree, changed in place."""
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return tree


MEANINGS: dict[str, Callable[[str], str]] = {
    ".py": lambda text: ast.unparse(without_docstrings(ast.parse(text))),
    ".yaml": lambda text: json.dumps(yaml.safe_load(text), default=str),
}


def is_finished(
    directory: Path, config: Mapping[str, Any], rows: Rows, *, grid: Path | None = None
) -> bool:
    """Return whether the directory holds this very run, finished.

    A directory whose run has computed nothing yet may be started anew with other settings.

    Args:
        directory: Run directory.
        config: The resolved config of the run that is asked for.
        rows: Gives the hash of each pool's rows; called only where there is a run to compare.
        grid: Of which the run is a cell; its finished cells of other code get one warning.

    Raises:
        UserError: If the run there has other settings or rows, has diverged, or is half done by
            other code. The message names each difference. Or if something is in a run's way.
    """
    check_places(directory)
    earlier = read_run(directory)
    if not has_results(directory, earlier):
        return False
    _refuse(
        directory, list(other_settings(earlier["config"], config)) or list(_rows(earlier, rows()))
    )
    if earlier["state"] == DIVERGED:
        raise DivergenceError(
            f"the run in {directory} has diverged ({earlier['error']}); {WAYS_OUT}"
        )
    other_code = ", ".join(_code(earlier))
    finished = bool(earlier["state"] == FINISHED)
    if finished:
        _check_answers(directory, config["data"]["evaluation"])
    if other_code and not finished:
        raise UserError(
            f"{directory} was begun by other code ({other_code}): continuing would mix two "
            f"versions in one run; {WAYS_OUT}"
        )
    if other_code:
        _warn(grid or directory, other_code)
    return finished


def _refuse(directory: Path, differences: Sequence[str]) -> None:
    if differences:
        shown = "; ".join(differences[:SHOWN])
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(f"{directory} holds another run ({shown}{more}); {WAYS_OUT}")


def _check_answers(directory: Path, sets: Iterable[str]) -> None:
    for name in sets:
        for file in ("metrics.json", "predictions.jsonl"):
            path = Path("evaluation", "final", name, file)
            if not (directory / path).is_file():
                raise UserError(f"{directory} is finished, but its {path} is gone; {WAYS_OUT}")


@functools.cache
def _warn(place: Path, other_code: str) -> None:
    log.warning(
        "%s was made by other code (%s); fresh=true runs it again with this code",
        *(place, other_code),
    )


def other_settings(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting that changes results and differs from the recorded config."""
    masked = [masked_values(c) for c in (earlier, config)]
    if masked[0] == masked[1]:  # as at the end of each cell; defaults take 40 ms
        return
    before, now = (dict(flat(results_only(with_defaults(c)))) for c in masked)
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) != now.get(key):
            yield f"{key} {_short(before.get(key))} -> {_short(now.get(key))}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def _rows(earlier: Mapping[str, Any], rows: Mapping[str, str]) -> Iterator[str]:
    before = earlier.get("rows", {})  # runs of earlier versions recorded none
    for name, sha256 in rows.items():
        if name in before and before[name] != sha256:
            of_set, _, kind = name.partition("/")
            owner = OWNERS.get(name) or f"the {kind or 'rows'} of {of_set}"
            yield f"{owner} have changed, {before[name][:8]} -> {sha256[:8]}"


def _code(earlier: Mapping[str, Any]) -> Iterator[str]:
    before = earlier.get("code") or {}
    for name, value in code().items():
        # The engine is known once the model is loaded; the checkpoints compare it.
        if name != "engine" and before.get(name) != value:
            old = "unknown" if before.get(name) is None else str(before[name])[:12]
            label = "code" if name == "sha256" else name
            yield f"{label} {old} -> {str(value)[:12]}"
