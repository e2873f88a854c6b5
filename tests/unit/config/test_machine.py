"""What counts as a GPU, and how its memory is taken.

A C compiler builds a driver here in place of NVIDIA's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medvqa.config.machine import take_gpu_memory_in_pages

ROOT = Path(__file__).parents[3]
DRIVER = """
int cuInit(unsigned flags) { return %d; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""
COUNT = "import os; from medvqa.config.machine import num_cuda_devices as n; print(n(os.environ))"


def num_devices(driver_directory, visible):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(driver_directory)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    command = [sys.executable, "-c", COUNT]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc) to build the stand-in driver")

    def built(*, status):
        directory = tmp_path_factory.mktemp("driver")
        (directory / "driver.c").write_text(DRIVER % status, encoding="utf-8")
        library = directory / "libcuda.so.1"
        source = directory / "driver.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        return directory

    return built


@pytest.mark.parametrize(("visible", "expected"), [(None, 2), ("0,1", 2), ("", 0), ("-1", 0)])
def test_the_drivers_devices_count_unless_they_are_hidden(driver, visible, expected):
    assert num_devices(driver(status=0), visible) == expected


def test_a_driver_that_does_not_start_offers_nothing(driver):
    no_device = 100  # CUDA_ERROR_NO_DEVICE
    assert num_devices(driver(status=no_device), None) == 0


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_configuration_of_the_allocator_stays(name, monkeypatch):
    for other in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    before = dict(os.environ)
    take_gpu_memory_in_pages()
    assert dict(os.environ) == before


def test_gpu_memory_is_taken_in_pages_by_default(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    del os.environ["PYTORCH_ALLOC_CONF"]
    take_gpu_memory_in_pages()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
