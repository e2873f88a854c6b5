"""The doctor names what is missing with its fix, shows no key and never fails itself."""

from importlib import metadata

import pytest

from medvqa.preflight import doctor
from medvqa.preflight.doctor import Line, _guarded


def test_a_check_that_breaks_is_a_line_and_the_others_go_on():
    def _disk():
        raise PermissionError("no")
        yield Line("disk", "")

    assert _guarded(_disk) == [Line("disk", "cannot be checked: PermissionError: no", "mend this")]


def test_a_hidden_gpu_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(doctor, "environment", lambda: {"gpus": ["NVIDIA H100, 580, 81559 MiB"]})
    monkeypatch.setattr(doctor, "num_cuda_devices", lambda _: 0)
    (line,) = doctor._gpu()
    assert "NVIDIA H100" in line.finding
    assert line.fix.startswith(("CUDA_VISIBLE_DEVICES hides it", "this PyTorch is built for CPUs"))


def test_a_package_out_of_bounds_is_named_with_the_command(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0.1" if n == "datasets" else real(n))
    packages = next(doctor._packages())
    assert packages.fix.startswith("pip install 'datasets<")


@pytest.mark.parametrize("name", ["present", "absent"])
def test_a_key_is_present_or_absent(monkeypatch, tmp_path, name):
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if name == "present":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    line = next(doctor._accounts())
    assert line.finding == name and bool(line.fix) == (name == "absent")
