"""The doctor names what is missing with its fix, shows no key and never fails itself."""

from importlib import metadata

import pytest

from medvqa.config.compose import checked, compose_cells
from medvqa.preflight import doctor
from medvqa.preflight.doctor import Line, _guarded
from medvqa.preflight.gpu_memory import estimate_memory
from medvqa.preflight.model_shapes import model_shapes


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


@pytest.mark.parametrize("name", doctor.NEEDED_BYTES)
def test_the_table_of_models_holds_what_preflight_estimates(name):
    ((_, composed),) = compose_cells([f"model={name}"], is_sweep=False)
    config = checked(composed, runs_here=False)
    memory = estimate_memory(model_shapes(config), config, longest_tokens=doctor.TOKENS)
    needed = memory.total + doctor.CUDA_BYTES
    assert doctor.NEEDED_BYTES[name] == pytest.approx(needed, rel=0.03)


def test_a_cache_too_large_to_count_in_time_is_given_as_a_lower_bound(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert doctor._bytes_below(tmp_path) == (10, True)
    monkeypatch.setattr(doctor, "COUNTING_S", -1.0)
    assert doctor._bytes_below(tmp_path) == (0, False)
