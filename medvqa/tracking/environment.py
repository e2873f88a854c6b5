"""The machine, the package versions and the commit that a record names."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import medvqa
from medvqa.config.secrets import masked

PACKAGES = (
    *("hydra-core", "omegaconf", "unsloth", "unsloth_zoo", "transformers", "trl", "peft"),
    *("bitsandbytes", "datasets", "torch", "torchvision", "wandb", "bert-score", "accelerate"),
    *("tokenizers", "numpy", "pillow"),
)


def environment() -> dict[str, Any]:
    """Return machine and versions; packages are not imported for it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": list(_gpus()),
        "packages": {"medvqa": medvqa.__version__, **{name: version(name) for name in PACKAGES}},
    }


def version(package: str) -> str | None:
    """Return the installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache  # a process serves many runs, and the driver's answer takes a second
def _gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:  # a driver that hangs must not hang the run
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return ()
    return tuple(answer.stdout.strip().splitlines()) if answer.returncode == 0 else ()


def provenance() -> dict[str, Any]:
    """Return what a measurement's file says of when, how, on what and with which code."""
    return {
        "date": now(),
        "command": " ".join(["python", *masked(sys.argv)]),
        "git": git_state(Path(__file__).parent),
        "environment": environment(),
    }


def git_state(directory: Path) -> dict[str, Any]:
    """Return commit and dirtiness of the code; nulls for an installed package.

    An untracked file counts as dirt: a module that was never committed changes results too.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(directory), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An environment inside some checkout is not that checkout's code.
    is_ours = git("ls-files", "--error-unmatch", ".") is not None
    commit = git("rev-parse", "HEAD") if is_ours else None
    status = git("status", "--porcelain") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
