"""The wheel: a user who never saw the checkout has the same groups and the same command."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def done(*command, **keywords):
    answer = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="needs build and hatchling: pip install -e .[dev]")
    pytest.importorskip("hatchling", reason="without network the wheel is built in this very env")
    directory = tmp_path_factory.mktemp("wheel")
    done(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", str(directory), str(ROOT)),
    )
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    # Unpacking is what pip does with a pure wheel, and needs no pip in the test environment.
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def test_it_carries_every_conf_file_and_the_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"medvqa/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(conf) > 20
    assert conf | {"medvqa/conf/__init__.py"} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "outputs/")) for name in names)


def test_its_command_composes_from_the_package_wherever_it_is_called(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    (scripts,) = installed.glob("*.dist-info/entry_points.txt")
    assert "medvqa = medvqa.cli:main" in scripts.read_text(encoding="utf-8")

    def medvqa(*arguments):
        command = (sys.executable, "-m", "medvqa.cli", "train", *arguments)
        return done(*command, cwd=tmp_path, env=environment)

    assert "pkg://medvqa.conf" in medvqa("--info", "searchpath")
    shown = medvqa("model=qwen2_vl_7b", "--cfg", "job")
    assert "name: Qwen/Qwen2-VL-7B-Instruct" in shown
    assert "max_steps: 50" in shown
    assert list(tmp_path.iterdir()) == []


def test_it_shows_the_example_report(installed, tmp_path):
    options = ("--no-plots", "--no-pictures", "--samples", "50")
    done(
        *(sys.executable, "-m", "medvqa.cli", "report", "--example", "example", *options),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert "open_first" in (tmp_path / "example" / "report.html").read_text(encoding="utf-8")
