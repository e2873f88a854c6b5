"""The site's reference pages, made from the code when MkDocs builds the site (see mkdocs.yml)."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from medvqa.cli import COMMANDS
from medvqa.config.bounds import INTERVALS, MAX_TEXT
from medvqa.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "mapping"}
WIDTH = 100  # columns of a help text
Section = tuple[str, Any]  # prefix of the keys, dataclass


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the config as the reference shows it."""

    origin: str
    name: str
    type: str
    default: str
    bounds: str
    meaning: str


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site; MkDocs calls this."""
    from mkdocs.structure.files import File

    pages = {"config": config_page, "choices": choices_page, "commands": commands_page}
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each `<!-- attributes: MODULE:CLASS -->` of a page; MkDocs calls this."""
    return re.sub(r"<!-- attributes: ([\w.]+):(\w+) -->", _attributes_table, markdown)


def _attributes_table(marker: re.Match[str]) -> str:
    schema = getattr(import_module(marker[1]), marker[2])
    hints, meanings = get_type_hints(schema), attributes(schema)
    rows = [
        f"| `{name}` | {type_text(hints[name])} | {one_line(meanings.get(name, ''))} |"
        for name in (field.name for field in dataclasses.fields(schema))
    ]
    return "\n".join(["| key | type | meaning |", "|---|---|---|", *rows])


def config_page() -> str:
    """Return every key of the config with type, default, bounds and meaning."""
    lines = [
        "# Config keys",
        "",
        "This page is made from the dataclasses in `medvqa/config/`. A default is the one of the",
        "schema. A file of a [group](choices.md) may set another, and the command line overrides",
        "both. `python train.py --cfg job` shows the values of a run. A key without a default",
        f"comes from its group's file. A text has at most {MAX_TEXT:,} characters.",
    ]
    shown: set[str] = set()
    for prefix, schema in sections(Config):
        title = prefix.rstrip(".") or "Top level"
        lines += ["", f"## {title}", "", *paragraph(schema), ""]
        new = [key for key in keys(schema) if key.origin not in shown]
        if len(new) < len(keys(schema)):
            lines += ["It takes the keys of `data` that describe rows, from `name` on.", ""]
        lines += ["| key | type | default | bounds | meaning |", "|---|---|---|---|---|"] * bool(
            new
        )
        lines += [
            f"| `{prefix}{k.name}` | {k.type} | {k.default} | {k.bounds} | {k.meaning} |"
            for k in new
        ]
        shown |= {key.origin for key in new}
    return "\n".join(lines) + "\n"


def sections(schema: Any, prefix: str = "", known: set[Any] | None = None) -> Iterator[Section]:
    """Yield the dataclass and those that its fields hold, each once, behind its keys' prefix."""
    known = set() if known is None else known
    if schema in known:
        return
    known.add(schema)
    yield prefix, schema
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        inside = {list: "[].", dict: ".NAME."}.get(get_origin(hints[field.name]) or Any, ".")
        for part in parts_of(hints[field.name]):
            if dataclasses.is_dataclass(part):
                yield from sections(part, f"{prefix}{field.name}{inside}", known)


def parts_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint is made of."""
    inner = [part for argument in get_args(hint) for part in parts_of(argument)]
    return (hint, *inner)


def keys(schema: Any) -> list[Key]:
    """Return the keys of one dataclass that hold values, not further groups."""
    hints, meanings = get_type_hints(schema), attributes(schema)
    return [
        Key(
            origin=f"{origin_of(schema, field.name)}.{field.name}",
            name=field.name,
            type=type_text(hints[field.name]),
            default=default_text(field),
            bounds=field.metadata.get("interval", bounds_text(hints[field.name])),
            meaning=one_line(meanings.get(field.name) or choice_meaning(hints[field.name])),
        )
        for field in dataclasses.fields(schema)
        if not any(dataclasses.is_dataclass(part) for part in parts_of(hints[field.name]))
    ]


def origin_of(schema: Any, name: str) -> str:
    """Return the dataclass, the given one or a base, that declares the field."""
    return next(
        c.__name__ for c in reversed(schema.__mro__) if name in vars(c).get("__annotations__", {})
    )


def attributes(schema: Any) -> dict[str, str]:
    """Return what the docstrings of a dataclass and of its bases say of each attribute."""
    meanings: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        _, _, text = cleandoc(base.__doc__ or "").partition("Attributes:\n")
        entries = re.split(r"\n(?=    \w+: )", "\n" + text.rstrip())
        pairs = [entry.strip().partition(": ") for entry in entries if ": " in entry]
        meanings |= {name: meaning for name, _, meaning in pairs}
    return meanings


def paragraph(schema: Any) -> list[str]:
    """Return the docstring of a dataclass without its attributes."""
    return cleandoc(schema.__doc__ or "").partition("Attributes:")[0].strip().splitlines()


def type_text(hint: Any) -> str:
    """Return a type in words; the names of an enumeration are its values."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join("null" if a is type(None) else type_text(a) for a in arguments)
    if kind is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if kind in (list, tuple):
        return f"list of {type_text(arguments[0])}"
    if kind in (dict, Mapping):
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.name}`" for member in hint)
    return TYPES[hint]


def default_text(field: dataclasses.Field[Any]) -> str:
    """Return the default of a field as YAML writes it."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default == MISSING:
        return "-"
    value = field.default.name if isinstance(field.default, Enum) else field.default
    return f"`{json.dumps(value)}`" if not isinstance(field.default, Enum) else f"`{value}`"


def bounds_text(hint: Any) -> str:
    """Return the interval of a number that its field does not narrow."""
    return next((INTERVALS[part] for part in parts_of(hint) if part in INTERVALS), "")


def choice_meaning(hint: Any) -> str:
    """Return what an enumeration's docstring says; nothing for other types."""
    choices = [p for p in parts_of(hint) if isinstance(p, type) and issubclass(p, Enum)]
    return next((cleandoc(choice.__doc__ or "") for choice in choices), "")


def one_line(text: str) -> str:
    """Return a text that fits a cell of a table; a page of the docs becomes a link."""
    linked = re.sub(r"\bdocs/([\w/]+)\.md", r"[\1](../\1.md)", " ".join(text.split()))
    return linked.replace("|", r"\|")


def choices_page() -> str:
    """Return every file of every config group with the comment at its head."""
    lines = [
        "# Config groups",
        "",
        "This page is made from the files in `conf/`. Choose an option with `group=option`.",
    ]
    conf = ROOT / "conf"
    for group in sorted({path.parent.relative_to(conf) for path in conf.glob("*/**/*.yaml")}):
        lines += ["", f"## {group}", "", "| option | what it is |", "|---|---|"]
        options = sorted((conf / group).glob("*.yaml"))
        lines += [f"| `{path.stem}` | {head_comment(path)} |" for path in options]
    return "\n".join(lines) + "\n"


def head_comment(path: Path) -> str:
    """Return the comment at the head of a YAML file, without its commands."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"# *(@package|python |medvqa |pip )", line):
            comments.append(line.lstrip("# "))
    return one_line(" ".join(comments))


def commands_page() -> str:
    """Return the help of every command, as the command itself prints it."""
    lines = [
        "# Commands",
        "",
        "This page is made from the commands' own `--help`. `python train.py` is `medvqa train`.",
    ]
    for name, purpose in COMMANDS.items():
        lines += ["", f"## {name}", "", f"{purpose[0].upper()}{purpose[1:]}.", ""]
        lines += ["```text", help_text(name), "```"]
    return "\n".join(lines) + "\n"


def help_text(command: str) -> str:
    """Return what `medvqa COMMAND --help` prints."""
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    start = [sys.executable, "-m", "medvqa.cli", command, "--help"]
    shown = subprocess.run(start, capture_output=True, text=True, env=environment, cwd=ROOT)
    return shown.stdout.replace("cli.py", "medvqa").strip()
