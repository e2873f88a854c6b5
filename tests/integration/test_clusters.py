"""Grids on a real Slurm of one node and on a real local Ray: the same files, resume and summary."""

import json
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hydra.errors import MissingConfigException

from medvqa.config.errors import UserError, explain
from medvqa.sweep.ray_cluster import check_resources
from medvqa.tracking.record import read_lines
from tests import conftest, one_node_slurm
from tests.conftest import ROOT, environment, wait_for
from tests.integration.test_sweep import SMOKE, runs, sweep_of

# The first cell is refused once its processor is loaded, the second one works.
ONE_FAILS = (
    *SMOKE,
    "model.min_pixels=16",
    "model.max_pixels=64,16384",
    "evaluation.zero_shot=false",
)
LONG = (*SMOKE, "evaluation.zero_shot=false", "training.max_steps=30", "seed=1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip('Slurm is not tested: pip install -e ".[slurm]"')
    if reason := one_node_slurm.why_not():
        pytest.skip(f"Slurm is not tested: {reason}")
    with one_node_slurm.one_node(tmp_path_factory.mktemp("slurm")) as variables:
        # Slurm sets CUDA_VISIBLE_DEVICES; a login node shows no GPU.
        yield {**environment(), "PATH": variables["PATH"], "SLURM_CONF": variables["SLURM_CONF"]}


def start(directory, variables, launcher, *overrides):
    return conftest.start(directory, "-m", f"hydra/launcher={launcher}", *overrides, env=variables)


def call(*arguments):
    return conftest.ended(start(*arguments))


def run_json(run):
    return json.loads((run / "run.json").read_text())


def assert_one_failed_and_one_finished(sweep, code, output):
    assert code == 1, output
    assert "is not obeyed" in output
    assert "1 of 2 jobs did not finish (0); the same command runs what is left" in output
    rows = json.loads((sweep / "summary.json").read_text())["jobs"]
    assert [row["state"] for row in rows] == ["failed", "finished"]
    assert (sweep / "summary.csv").is_file()
    (finished,) = (run for run in runs(sweep) if run_json(run)["state"] == "finished")
    assert run_json(finished)["num_starts"] == 1
    assert "console.log" in {path.name for path in finished.iterdir()}
    return rows


@pytest.fixture(scope="module")
def ray_grid(tmp_path_factory):
    """A grid under way, and its directory; it works while Slurm's tests wait."""
    directory = tmp_path_factory.mktemp("ray")
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        yield None, directory
        return
    grid = (*ONE_FAILS, "hydra.launcher.ray.remote.num_gpus=0")
    process = start(directory, environment(), "ray", *grid)
    yield process, directory
    process.kill()  # if no test has waited for its end
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("ray_grid")
def test_a_slurm_grid_leaves_what_every_grid_leaves(slurm, tmp_path):
    code, output = call(tmp_path, slurm, "slurm", "hydra.launcher.cpus_per_task=2", *ONE_FAILS)
    sweep = sweep_of(tmp_path)
    rows = assert_one_failed_and_one_finished(sweep, code, output)
    assert {row["slot"] for row in rows} == {"0", "1"}, "each job had a GPU of its own"
    shown = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "status", str(sweep)],
        env=slurm | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 failed, 1 finished" in shown.stdout


def test_slurm_jobs_go_on_after_ctrl_c_and_requeue_and_a_launcher_that_was_killed(slurm, tmp_path):
    def step():
        saved = sorted(tmp_path.glob("multirun/*/*/checkpoints/step-*"))
        return int(saved[-1].name.removeprefix("step-")) if saved else 0

    launcher = start(tmp_path, slurm, "slurm", *LONG)
    wait_for(lambda: step() >= 2)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 130, output
    assert "1 interrupted" in output
    (run,) = runs(sweep_of(tmp_path))
    assert run_json(run)["state"] == "interrupted"

    launcher = start(tmp_path, slurm, "slurm", *LONG)
    before = step()
    wait_for(lambda: step() > before + 2)
    launcher.kill()
    launcher.communicate()
    identifier = json.loads((run / "slurm.json").read_text())["id"]
    subprocess.run(["scontrol", "requeue", identifier], env=slurm, check=True)
    wait_for(lambda: read_state(run) == "interrupted" or run_json(run)["num_starts"] == 3)
    code, output = call(tmp_path, slurm, "slurm", *LONG)
    assert code == 0, output
    assert "1 jobs are in Slurm's queue already" in output
    record = run_json(run)
    assert (record["state"], record["num_starts"]) == ("finished", 3)
    assert record["training"]["resumed_from_step"] > before
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == list(range(1, 31))


def read_state(run):
    return json.loads((run / "status.json").read_text())["state"]


def test_a_ray_grid_leaves_what_every_grid_leaves(ray_grid):
    process, directory = ray_grid
    if process is None:
        pytest.skip('Ray is not tested: pip install -e ".[ray]"')
    assert_one_failed_and_one_finished(sweep_of(directory), *conftest.ended(process))


def test_a_local_ray_is_not_asked_for_what_it_does_not_have():
    options = {"init": {"address": None}, "remote": {"num_gpus": 1, "num_cpus": 1}}
    with pytest.raises(UserError, match=r"remote\.num_gpus=1, but Ray finds 0 here"):
        check_resources(options, {"CPU": 2.0})
    check_resources(options, {"CPU": 2.0, "GPU": 1.0})
    check_resources({**options, "init": {"address": "auto"}}, {"CPU": 2.0})  # it may grow


def test_a_login_node_needs_no_gpu_but_slurm(tmp_path):
    cell = ("model=qwen3_vl_8b", "model.backend=transformers", "model.device=cuda", "seed=1,2")
    code, output = call(tmp_path, environment(PATH=""), "slurm", *SMOKE, *cell)
    assert (code, output) == (
        2,
        "medvqa: hydra/launcher=slurm, but `squeue` does not answer on this machine\n",
    )


def test_what_is_not_installed_is_named_with_the_command():
    error = MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic", "isolated"])
    assert explain(error).endswith('pip install -e ".[slurm]"')
