"""`medvqa doctor`: what this machine can run, with the fix on each line that is not ok."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import medvqa
from medvqa.config.command_line import CommandParser
from medvqa.config.machine import cache_directory, num_cuda_devices
from medvqa.models.source import hub_answers
from medvqa.preflight.downloads import free_bytes
from medvqa.tracking.environment import environment, version
from medvqa.tracking.terminal import console, table
from medvqa.tracking.wandb_mode import has_key

GIGABYTE = 1e9
LITTLE_MEMORY, LITTLE_DISK = 8e9, 20e9  # bytes
TOKENS = 400  # of a sample with one picture
CUDA_BYTES = 1e9  # CUDA's own, which the estimate leaves out
# Bytes of a training step with each model's shipped settings. `estimate_memory` computes them from
# the built model, which takes ten seconds; a test compares the two.
NEEDED_BYTES = {
    "tiny": 1.1e9,
    "qwen2_vl_2b_4bit": 7.6e9,
    "qwen3_vl_2b": 10.1e9,
    "qwen2_vl_7b": 28.4e9,
    "qwen3_vl_8b": 30.2e9,
}
DISTRIBUTION = "medvqa-curriculum"
COUNTING_S = 2.0  # at most, for the size of one cache


class Line(NamedTuple):
    """One row of the table; a fix stands only where something is not ok."""

    subject: str
    finding: str
    fix: str = ""


def main_doctor(argv: Sequence[str]) -> None:
    """Say what this machine can run; leaves with 0 whatever is missing. Keys are never shown."""
    example = {"medvqa doctor": "GPU, memory, packages, keys and caches of this machine"}
    CommandParser(main_doctor, example).parse_args(argv)
    from rich.text import Text

    with ThreadPoolExecutor() as pool:  # a silent hub or driver takes seconds to give up on
        lines = [line for part in pool.map(_guarded, CHECKS.values()) for line in part]
    rows: list[list[str | Text]] = [
        [line.subject, Text("fix" if line.fix else "ok", "yellow" if line.fix else "green"),
         line.finding, line.fix]
        for line in lines
    ]  # fmt: skip
    console().print(table("medvqa doctor", ("", "", "found", "fix"), rows))


def _guarded(check: Callable[[], Iterator[Line]]) -> list[Line]:
    """Return the check's lines; a check that fails is a line of its own."""
    try:
        return list(check())
    except Exception as error:  # whatever is broken on this machine, the other lines are shown
        reason = f"{type(error).__name__}: {error}"
        name = check.__name__.removeprefix("_")
        return [Line(name, f"cannot be checked: {reason}", "mend this")]


def _machine() -> Iterator[Line]:
    import psutil

    machine = environment()
    memory = psutil.virtual_memory()
    yield Line("python", f"{machine['python']} on {machine['platform']}")
    yield Line(
        "memory",
        f"{_size(memory.total)}, {_size(memory.available)} free; {machine['num_cpus']} cores",
        "8 GB or more are needed beside a model" if memory.total < LITTLE_MEMORY else "",
    )
    free = free_bytes(Path("outputs").absolute())
    few = "give hydra.run.dir= on a larger disk" if free < LITTLE_DISK else ""
    yield Line("disk", f"{_size(free)} free for outputs/", few)


def _gpu() -> Iterator[Line]:
    gpus, visible = environment()["gpus"], num_cuda_devices(os.environ)
    if not gpus and not visible:
        yield Line("gpu", "none", "model=tiny runs on this CPU; other models need an NVIDIA GPU")
        return
    fix = "" if visible else "CUDA_VISIBLE_DEVICES hides it, or the driver does not answer"
    if metadata.version("torch").endswith("+cpu"):
        fix = "this PyTorch is built for CPUs: install its CUDA build"
    yield Line("gpu", f"{'; '.join(gpus)}; {visible} visible", fix)


def _models() -> Iterator[Line]:
    """Compare each model's training step, with its shipped settings, with the largest GPU."""
    sizes = [float(gpu.rsplit(",", 1)[1].split()[0]) * 2**20 for gpu in environment()["gpus"]]
    largest = max(sizes, default=0.0)
    for name, needed in NEEDED_BYTES.items():
        fix = "" if needed < largest or name == "tiny" else f"needs a GPU of {_size(needed)}"
        if fix and largest:
            fix += ", or training.gradient_checkpointing=true"
        yield Line(f"model={name}", f"training takes about {_size(needed)}", fix)


def _packages() -> Iterator[Line]:
    """Compare the installed packages with the bounds that this one declares."""
    ours = _distribution()
    required = [Requirement(text) for text in metadata.requires(ours) or []]
    base = [need for need in required if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = [need for need in base if not _is_met(need)]
    yield Line(
        "packages",
        f"medvqa {medvqa.__version__}, {len(base) - len(wrong)} of {len(base)} as required",
        f"pip install {' '.join(repr(str(need)) for need in wrong)}" if wrong else "",
    )
    versions = environment()["packages"]
    names = ("torch", "transformers", "peft", "datasets", "wandb")
    yield Line("versions", ", ".join(f"{name} {versions[name] or 'absent'}" for name in names))
    for extra in metadata.metadata(ours).get_all("Provides-Extra") or []:
        parts = [n for n in required if n.marker and n.marker.evaluate({"extra": extra})]
        absent = [n.name for n in parts if n not in base and not _is_met(n)]
        state = f"without {', '.join(absent)}" if absent else "installed"
        yield Line(f"extra {extra}", state, f'pip install -e ".[{extra}]"' if absent else "")


def _distribution() -> str:
    try:
        metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # installed under an earlier name
        return metadata.packages_distributions()["medvqa"][0]
    return DISTRIBUTION


def _is_met(need: Requirement) -> bool:
    installed = version(need.name)
    return installed is not None and need.specifier.contains(installed, prereleases=True)


def _accounts() -> Iterator[Line]:
    import huggingface_hub

    fix = "`wandb login`, or tracking=disabled; without a key runs are logged offline"
    is_known = has_key(os.environ)
    yield Line("W&B key", "present" if is_known else "absent", "" if is_known else fix)
    is_known = huggingface_hub.get_token() is not None
    fix = "`hf auth login`; only gated models and data sets need it"
    yield Line("Hugging Face key", "present" if is_known else "absent", "" if is_known else fix)
    fix = "" if hub_answers() else "give local copies: model.path=, data.path="
    yield Line("Hugging Face hub", "answers" if not fix else "does not answer", fix)


def _caches() -> Iterator[Line]:
    from huggingface_hub import constants

    places = {
        "models and data sets": Path(constants.HF_HUB_CACHE),
        "picture hashes": cache_directory(os.environ),
    }
    for name, place in places.items():
        size, is_whole = _bytes_below(place)
        full = place.exists() and shutil.disk_usage(place).free < LITTLE_DISK
        fix = "little is free there: HF_HOME and MEDVQA_CACHE move the caches" if full else ""
        prefix = "" if is_whole else "more than "
        yield Line(f"cache of {name}", f"{prefix}{_size(size)} in {place}", fix)


def _bytes_below(place: Path) -> tuple[int, bool]:
    """Return the size of the files below, and whether there was time to count them all."""
    size, end = 0, time.monotonic() + COUNTING_S
    for path in place.rglob("*"):
        if time.monotonic() > end:
            return size, False
        if path.is_file() and not path.is_symlink():
            size += path.stat().st_size
    return size, True


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIGABYTE:.1f} GB"


CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    "machine": _machine,
    "gpu": _gpu,
    "models": _models,
    "packages": _packages,
    "accounts": _accounts,
    "caches": _caches,
}
