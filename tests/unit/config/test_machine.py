"""What counts as a GPU, asked of a driver that a C compiler builds here in place of NVIDIA's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
