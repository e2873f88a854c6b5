"""A mistake -> one clear line in the user's words, with what to do about it."""

import dataclasses
import difflib
import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from medvqa.config.earlier import RENAMED
from medvqa.config.schema import Config


class UserError(ValueError):
    """A mistake in the user's input; the command line prints it as one line and exits with 2."""


class DivergenceError(UserError):
    """A loss, a gradient norm or a weight is not finite: the run's settings must change."""


class RankError(Exception):
    """A process of a run on several GPUs failed; the message holds its traceback, if any."""


# What is the user's to mend; any other exception is ours.
MISTAKES = (UserError, HydraException, OmegaConfBaseException, yaml.MarkedYAMLError)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, `ulimit -f`
# A full disk, a missing right, a file where a directory should be: of the user's machine.
OF_THE_MACHINE = {
    *(*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}

UPDATE = OmegaConf.update.__code__  # fails by a bare assertion where a key's parent is null
SLURM_EXTRA = 'pip install -e ".[slurm]"'


class Refused(BaseException):
    """Carries a mistake, its cause, past Hydra, which turns an `Exception` into its own message."""


def printable(text: object) -> str:
    """Return a name without line breaks and other characters that a terminal acts on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def machine_mistake(error: BaseException) -> UserError | None:
    """Return the one line about an error of the user's machine; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in OF_THE_MACHINE:
        return None
    place = error.filename2 or error.filename
    named = f"cannot use {place!s:.300}" if place else "the system refuses"
    advice = "make room, or give" if error.errno in FULL else "give"
    return UserError(f"{named} ({error.strerror}); {advice} another place")


def explain(error: BaseException) -> str:
    """Return what went wrong; a second line holds the choices where there are some."""
    # omegaconf's own path is short by the part above a dictionary's entry; Hydra's text has it all.
    merging = re.match(r"Error merging override \+*(\S+)", str(error))
    file = re.match(r"In '(\S+)': \w+ raised while composing", str(error))
    for link in _chain(error):
        text = _explain_one(link, merging[1] if merging else None)
        if text is not None:
            return f"{file[1]}.yaml: {text}" if file else text
    return _reason(error)


@contextmanager
def about(place: str) -> Iterator[None]:
    """Put a place, such as a file and its line, in front of the message of a `UserError`.

    A message that begins with a verb continues the sentence: `t.csv[3] has no image`. One that
    names the place already stays.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        if not place or place in text:
            raise
        separator = " " if text.startswith(("has ", "is ")) else ": "
        raise UserError(f"{place}{separator}{text}") from error


@contextmanager
def as_user_error(action: str, advice: str = "") -> Iterator[None]:
    """Turn any error into one line; libraries raise a dozen unrelated types.

    Args:
        action: What failed, such as `cannot fetch FILE`.
        advice: How to go on; it follows the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{action} ({first_line(error)}){advice}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, two if it ends with a colon, or the type."""
    # The library `datasets` hides the reason behind one sentence.
    while str(error).startswith("An error occurred while generating") and error.__cause__:
        error = error.__cause__
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).strip()


@contextmanager
def mistakes_as_user_errors() -> Iterator[None]:
    """Turn the errors of Hydra, omegaconf and YAML into ours, with one clear line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = explain(error) if isinstance(error, MISTAKES) else plain_mistake(error)
        if text is None:
            raise
        raise UserError(text) from error


def plain_mistake(error: BaseException) -> str | None:
    """Return the line about a mistake for which Hydra and omegaconf have no error type."""
    if isinstance(error, OverflowError) and raised_in(error, "omegaconf"):
        return "the command line holds a number of too many digits"
    frame = _last_frame(error)
    if isinstance(error, AttributeError) and (match := re.search(r"full_key: (\S+)", str(error))):
        key, reason = match[1], "cannot take this value; give its parts one by one"
    elif isinstance(error, AssertionError) and frame and frame.f_code is UPDATE:
        key = frame.f_locals["key"]
        reason = f"cannot be set, because {key.rpartition('.')[0]} is null; give that a value"
    else:
        return first_line(error) if raised_in(error, "hydra") else None
    if key.startswith("hydra.sweeper.params"):
        reason = "belongs in an experiment's file; on the command line write -m KEY=VALUE,VALUE"
    return f"{key} {reason}"


def raised_in(error: BaseException, package: str) -> bool:
    """Return whether code of the package raised the error."""
    frame = _last_frame(error)
    return frame is not None and frame.f_globals["__name__"].partition(".")[0] == package


def _last_frame(error: BaseException) -> FrameType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace and trace.tb_frame


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_one(error: BaseException, override: str | None) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return unknown_option(*error.missing_cfg_file.rpartition("/")[::2], error.options or [])
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error)
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        form = f"\"{key}='{value}'\"" if value.startswith("~") else "key=value, or key='a=b'"
        return f"cannot read the override {error.override!r}; write {form}"
    if isinstance(error, ValidationError):
        hint = "; for no value write null" if "'none'" in str(error).lower() else ""
        return f"{override or error.full_key}: {_reason(error)}{hint}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    if isinstance(error, OmegaConfBaseException):
        place = override or error.full_key
        return f"{place}: {_reason(error)}" if place else _reason(error)
    return None


def unknown_option(group: str, name: str, known: Sequence[str]) -> str:
    """Return the message about an option that a config group does not have."""
    if not group:
        return f"unknown config {name!r}"
    if name == "submitit_slurm":  # what our launcher's file builds on
        return f"hydra/launcher=slurm needs Hydra's submitit launcher: {SLURM_EXTRA}"
    what = f"option {name!r} in config group {group!r}"
    return _unknown(what, name, known, prefix=f"{group}=")


def _unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    full_key = str(error.full_key or error.key)
    holder = error.object_type if dataclasses.is_dataclass(error.object_type) else Config
    known = [field.name for field in dataclasses.fields(holder)]
    if full_key in RENAMED:
        return f"unknown key {full_key!r}; did you mean {RENAMED[full_key]}=?"
    if full_key.startswith("hydra.") and holder is Config:  # below a mapping with names of any kind
        return f"there is no {full_key}; write +{full_key}= to add it"
    prefix = full_key[: -len(str(error.key))] if full_key.endswith(str(error.key)) else ""
    if prefix in ("data.evaluation.", "data.parts."):  # whose names are the user's to choose
        return f"there is no {full_key}; sets and parts are named in a file: copy one of conf/data"
    return _unknown(f"key {full_key!r}", str(error.key), known, prefix=prefix)


def _unknown(what: str, name: str, known: Sequence[str], *, prefix: str) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    suffix = "" if prefix.endswith("=") else "="
    hint = f"; did you mean {' or '.join(f'{prefix}{n}{suffix}' for n in near)}?" if near else ""
    return f"unknown {what}{hint}" + (f"\n  known: {', '.join(known)}" if known else "")


def _reason(error: BaseException) -> str:
    text = first_line(error)
    is_sweep = text.startswith("Ambiguous value for argument")
    return f"{text}; a sweep over several values needs -m" if is_sweep else text
