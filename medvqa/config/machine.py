"""What the machine has, without PyTorch, and how our processes begin and end on it."""

import atexit
import ctypes
import gc
import os
from collections.abc import Mapping
from pathlib import Path

from medvqa.config.errors import UserError

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# Set by the command line for its own process.
NOT_INHERITED = ("HYDRA_FULL_ERROR",)


def python_path() -> str:
    """Return PYTHONPATH with this package: a checkout that is not installed is found, too."""
    return os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))


def process_environment(num_processes: int, *, gpus: str = "") -> dict[str, str]:
    """Return the environment of one of so many processes of ours.

    Each takes its share of the cores, unless the user has set a number of threads. By default each
    process would start a thread per core, and the processes would slow each other down.
    """
    result = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    result["PYTHONPATH"] = python_path()
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    result.setdefault("OMP_NUM_THREADS", str(num_threads))
    if gpus:
        result["CUDA_VISIBLE_DEVICES"] = gpus
    return result


def leave_at_once() -> None:
    """Let this process end without freeing its objects one by one.

    With torch and transformers it holds a million objects, and freeing each takes three seconds in
    all. The system frees them at once. Exit handlers still run.
    """
    atexit.register(gc.freeze)
    atexit.register(gc.disable)


def take_gpu_memory_in_pages() -> None:
    """Let PyTorch map GPU memory page by page, unless the user has configured its allocator.

    Quantising an 8B model leaves 0.7 to 1 GB of pieces between its tensors that are too small for a
    training pass. Pages without a tensor go back to the GPU. Call it before CUDA starts.
    """
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


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
    folder = environment.get("MEDVQA_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "medvqa"
