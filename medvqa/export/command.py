"""`medvqa export RUN`: a finished run as files that PEFT, transformers, vLLM and llama.cpp load."""

import argparse
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.model import Device, Dtype
from medvqa.config.schema import Config
from medvqa.config.typed import typed_anywhere
from medvqa.data.example import Example
from medvqa.data.pool import load_pool, load_sets, rows_sha256
from medvqa.evaluation.phase_scores import read_evaluations
from medvqa.export import outside
from medvqa.export.atomic import check_target, new_directory
from medvqa.export.card import model_card
from medvqa.export.medico import write_medico
from medvqa.export.merging import PLACE, load_saved, merge, merging_config, reevaluate
from medvqa.export.record import export_record
from medvqa.models.adapter import ADAPTER_FILE, read_adapter
from medvqa.models.source import load_processor
from medvqa.models.trained import EXPORT_FILE, Kind, Trained, model_config, read_trained
from medvqa.tracking.record import read_json, write_json, write_text
from medvqa.tracking.shape import reading

log = logging.getLogger(__name__)

PROMPTS_WITHOUT_A_SET = 8


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of one export.

    Attributes:
        base: Local directory of the base, in place of the one that the run names.
        dtype: Of the merged weights; the run's own if None.
        repository: On the hub; nothing is pushed if None.
        gguf_type: Nothing is converted if None.
    """

    run: Path
    target: Path
    is_merged: bool = False
    base: str | None = None
    device: Device = Device.auto
    dtype: Dtype | None = None
    repository: str | None = None
    is_public: bool = False
    gguf_type: str | None = None
    converter: Path | None = None


def export(options: ExportOptions) -> Path:
    """Write the export and return its directory.

    Raises:
        UserError: On a mistake, before anything slow; or if the merged model is not the adapter's
            equal. No directory is left then.
    """
    trained = read_trained(options.run)
    if trained.kind is not Kind.run:
        raise UserError(f"{options.run} is an export already; give the run itself")
    assert trained.adapter is not None
    read_adapter(trained.adapter)
    adapter_settings(trained.adapter, trained.lora.r)
    check_target(options.target)
    if options.repository is not None:
        outside.check_push(options.repository)
    if options.gguf_type is not None:
        options = replace(options, converter=outside.find_converter(options.converter))
    write = _write_merged if options.is_merged else _write_adapter
    with new_directory(options.target) as directory:
        write(trained, options, directory)
    if options.repository is not None:
        address = outside.push(options.target, options.repository, is_public=options.is_public)
        log.info("pushed to %s", address)
    return options.target


def adapter_settings(directory: Path, rank: int) -> dict[str, Any]:
    """Return PEFT's settings of the adapter.

    Raises:
        UserError: If the file is missing, damaged, or of another adapter.
    """
    path = directory / "adapter_config.json"
    try:
        settings = read_json(path)
    except UserError:
        settings = {}
    if (settings.get("peft_type"), settings.get("r")) != ("LORA", rank):
        raise UserError(
            f"{path} is missing, damaged or of another adapter (lora.r={rank} is expected); copy "
            "the file from a backup, or say fresh=true to train again"
        )
    return settings


def _write_adapter(trained: Trained, options: ExportOptions, directory: Path) -> None:
    assert trained.adapter is not None
    settings = adapter_settings(trained.adapter, trained.lora.r)
    # In place of this machine's path: what others can fetch.
    settings["base_model_name_or_path"] = trained.model.name
    settings["revision"] = trained.revision
    shutil.copyfile(trained.adapter / ADAPTER_FILE, directory / ADAPTER_FILE)
    config = replace(trained.model, path=options.base or trained.model.path)
    load_processor(config).save_pretrained(str(directory))
    write_json(directory / "adapter_config.json", settings)
    _describe(trained, Kind.adapter, options, directory)


def _write_merged(trained: Trained, options: ExportOptions, directory: Path) -> None:
    dtype = options.dtype or Dtype(trained.values["model"]["dtype"])
    # A base in 4 bits needs a GPU; the original that is merged into does not.
    full = replace(trained, model=replace(trained.model, load_in_4bit=False))
    own = model_config(full, device=options.device, base=options.base)
    config = merging_config(own, dtype=dtype)
    run_config = typed_anywhere(trained.values["config"])
    sets = _evaluation_sets(run_config, trained.values["data"])
    prompts = next(iter(sets.values()), None) or _phantoms()
    check = merge(trained, config, prompts, directory)
    if options.gguf_type is not None and options.converter is not None:
        outside.convert(options.converter, directory, options.gguf_type, name=trained.name)
    values = {
        **asdict(check),
        "dtype": dtype.value,
        "base": "given with --base" if options.base else trained.model.name,
        "equal_answers": reevaluate(trained, run_config, load_saved(config, directory), sets),
    }
    _describe(trained, Kind.merged, options, directory, merged=values)


def _evaluation_sets(config: Config, recorded: Mapping[str, Any]) -> dict[str, Sequence[Example]]:
    sets: dict[str, Sequence[Example]] = {}
    for name, pool in load_sets(config.data).items():
        if rows_sha256(pool.examples) != recorded[name]["sha256"]:
            raise UserError(
                f"evaluation set {name} is not what the run was evaluated on (its SHA-256 has "
                "changed): the two scores could not be compared"
            )
        sets[name] = pool.examples
    return sets


def _phantoms() -> Sequence[Example]:
    from medvqa.config.data import SourceConfig

    source = SourceConfig(name="phantom", split="test", limit=PROMPTS_WITHOUT_A_SET)
    return load_pool(source, seed=0).examples


def _describe(
    trained: Trained,
    kind: Kind,
    options: ExportOptions,
    directory: Path,
    *,
    merged: Mapping[str, Any] | None = None,
) -> None:
    """Write metrics, model card and, last of all, the file that makes the directory an export."""
    from jinja2 import UndefinedError

    run = trained.directory
    for place in (run, run / PLACE) if merged else (run,):
        for path in place.glob("evaluation/*/*/metrics.json"):
            copy = directory / path.relative_to(place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    evaluations = read_evaluations(directory)
    with reading(run / "run.json", UndefinedError):
        values = export_record(trained, kind, evaluations, merged)
        exported = replace(trained, kind=kind, values=values)
        card = model_card(exported, values, evaluations, place=options.repository or ".")
    write_text(directory / "README.md", card)
    write_json(directory / EXPORT_FILE, values)


def _parser() -> CommandParser:
    parser = CommandParser(
        main_export,
        {
            "medvqa export outputs/RUN": "the adapter, in RUN/export/adapter",
            "medvqa export outputs/RUN --merge": "16-bit weights, checked and evaluated again",
            "medvqa export outputs/RUN --push me/model": "and upload them, private",
        },
    )
    add = parser.group("run")
    add("run", type=Path, help="a finished run, below outputs/ or multirun/")
    add("--base", metavar="DIR", help="the base's own weights, in place of the hub")
    add("--device", choices=[d.value for d in Device], default="auto", help="default auto")
    add = parser.group("what to write")
    add("--out", type=Path, metavar="DIR", help="RUN/export/adapter or /merged if not given")
    add("--merge", action="store_true", help="merge into the original base")
    add("--dtype", choices=["bfloat16", "float32"],
        help="of merged weights; the run's if not given")  # fmt: skip
    add("--gguf", metavar="TYPE", choices=outside.GGUF_TYPES,
        help=f"also convert: {', '.join(outside.GGUF_TYPES)}")  # fmt: skip
    add("--converter", type=Path, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py")
    add("--medico", metavar="DIR", type=Path,
        help="only write the Medico challenge's files there")  # fmt: skip
    add = parser.group("upload")
    add("--push", metavar="REPO", help="upload to the hub, private")
    add("--public", action="store_true", help="make a new repository public")
    return parser


def main_export(argv: Sequence[str]) -> None:
    """Write a finished run as an adapter (PEFT) or as merged weights, with a model card."""
    options = _parser().parse_args(argv)
    _check(options)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("medvqa").setLevel(logging.INFO)
    if options.medico:
        place = write_medico(options.run, options.medico)
        sys.stdout.write(f"{place} holds the answers; fill in submission_info before you submit\n")
        return
    kind = "merged" if options.merge else "adapter"
    target = export(
        ExportOptions(
            run=options.run,
            target=options.out or options.run / "export" / kind,
            is_merged=options.merge,
            base=options.base,
            device=Device(options.device),
            dtype=Dtype(options.dtype) if options.dtype else None,
            repository=options.push,
            is_public=options.public,
            gguf_type=options.gguf,
            converter=options.converter,
        )
    )
    sys.stdout.write(f"{kind} in {target}; its README.md says how to load it\n")


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    alone = {
        "--gguf": options.gguf and not options.merge and "--merge: GGUF holds a whole model",
        "--dtype": options.dtype and not options.merge and "--merge: an adapter keeps its type",
        "--converter": options.converter and not options.gguf and "--gguf TYPE",
        "--public": options.public and not options.push and "--push REPO",
    }
    others = ("merge", "push", "gguf", "out", "base", "dtype")
    alone["--medico"] = options.medico and any(getattr(options, o) for o in others) and "no other"
    for option, missing in alone.items():
        if missing:
            raise UserError(f"{option} goes with {missing}")
