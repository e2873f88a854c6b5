"""What the machine has, found out without PyTorch, so that a check costs milliseconds."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

from medvqa.config.errors import UserError


def num_cuda_devices(environment: Mapping[str, str]) -> int:
    """Return how many CUDA devices the driver offers to a process with this environment."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def make_directory(path: Path, setting: str = "another directory") -> None:
    """Make a directory that this process can write to.

    Raises:
        UserError: If that is impossible; it names the setting to change.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".lock").open("a").close()
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); give {setting}") from error


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return `MEDVQA_CACHE`, or the place below the user's home."""
    given = environment.get("MEDVQA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "medvqa"
