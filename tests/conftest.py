import atexit
import copy
import fcntl
import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvqa.api import compose
from medvqa.config.data import SourceConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.data.pool import load_examples
from medvqa.export.command import ExportOptions, export
from medvqa.inputs import Inputs
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.loaded import LoadedModel
from medvqa.sweep.warm import WarmModels
from tests.forked import LIBRARIES, TRAIN, Forked

# All cores run tests; more threads than cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A hundred processes import the package: only the first one should compile it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell starts what runs in its background deaf to Ctrl-C, and every process it starts as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120
NUM_QUESTIONS = int(os.environ.get("MEDVQA_TEST_QUESTIONS", "40"))  # 451: all that VQA-RAD has
# These start many processes: begun last, one of them would keep a core busy while the other rests.
LONGEST = (
    *("test_sweep", "test_several_gpus", "test_clusters", "test_families", "test_search"),
    *("test_run", "test_same_run", "test_preflight", "test_benchmarks", "report/test_command"),
    *("test_demo", "test_tool_agents", "test_export", "test_serve", "test_leaks", "test_warm"),
    *("test_examples", "test_wandb", "test_fuzz", "test_docs", "test_trl", "test_processes"),
)
SECRET = "s3cret-0f-a-test"
SECRET_NAMES = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")
# One cache of picture hashes for all tests and the commands they start; never the user's own.
if "MEDVQA_CACHE" not in os.environ:
    os.environ["MEDVQA_CACHE"] = tempfile.mkdtemp(prefix="medvqa-tests-")
    atexit.register(shutil.rmtree, os.environ["MEDVQA_CACHE"], ignore_errors=True)
ENVIRONMENT = dict(os.environ)
TINY = ModelConfig(name="medvqa/tiny", max_pixels=16384, max_length_tokens=512)


# The imports of all test files leave a million objects that stay: the collector skips them.
gc.disable()


def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores: one in ten waits for processes of its own."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / f"tests/integration/{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


SHARED = Path(os.environ.get("MEDVQA_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Take back the variables that a command sets in this process, in a shared fixture too."""
    yield
    for name in os.environ.keys() - ENVIRONMENT.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(ENVIRONMENT)


@pytest.fixture
def no_wandb_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no server, no home: the machine's own account must not be seen or written to."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """Take away what a command in this process adds: its stream is closed when the test ends."""
    before = [*logging.getLogger().handlers]
    yield
    for handler in [*logging.getLogger().handlers]:
        if handler not in before:
            logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    place = SHARED
    if not (place / "data").is_dir():
        pytest.skip(f"real data is absent: no {place / 'data'} (set MEDVQA_SHARED)")
    return place


@pytest.fixture(scope="session")
def untouched() -> LoadedModel:
    return load_model(TINY, LoraConfig(r=4, alpha=8), gradient_checkpointing=False, seed=0)


@pytest.fixture
def tiny(untouched) -> LoadedModel:
    """Five copies take the time of one load."""
    return replace(untouched, model=copy.deepcopy(untouched.model))


@pytest.fixture
def models() -> Iterator[WarmModels]:
    yield WarmModels()
    if not gc.get_freeze_count():  # as before the test: collections are slow without
        gc.collect()
        gc.freeze()


@pytest.fixture
def encoder(tiny) -> Encoder:
    return Encoder(tiny.processor, max_length_tokens=512)


@pytest.fixture(scope="session")
def phantoms():
    return load_examples(SourceConfig(name="phantom", split="test"), seed=0)


SMOKE = (
    "experiment=smoke",
    "curriculum=open_first",
    "training.max_steps=12",
    "training.checkpoint_every=4",
)


def environment(**more: str) -> dict[str, str]:
    """No account of the machine's, no GPU, none of this process's settings of Hydra."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", **more}


def start(
    directory: Path, *arguments: str, env: dict[str, str] | None = None, **options: bool
) -> subprocess.Popen[str]:
    """Start `train.py` in the directory; its two streams come as one."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=directory,
        env=environment() if env is None else env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the process; return its exit code and what it printed."""
    output, _ = process.communicate()
    return process.returncode, output


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def forked(directory: Path, *overrides: str, imports: str = LIBRARIES) -> Forked:
    """Fork `train.py` in the directory."""
    return Forked(TRAIN, *overrides, imports=imports, cwd=directory, env=environment())


def call(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Make the run of this directory."""
    return forked(directory.parent, f"hydra.run.dir={directory}", *overrides).wait()


# The command, which says at its end what it has imported.
NAMING = """
import atexit, sys
from medvqa.cli import main
atexit.register(lambda: print(*sorted(sys.modules)))
sys.argv[0] = "train.py"
main()
"""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory that the workers share; the first one that asks has it filled."""
    place = factory.getbasetemp() / name
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = factory.getbasetemp().parent / name
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            place.mkdir()
            make(place)
            (place / "complete").touch()
    return place


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as a process, tracked offline: its directory and what the command said.

    The last line of its output names the modules that it imported.
    """

    def make(place: Path) -> None:
        assert Inputs(compose(SMOKE).typed, {}).overlap  # hashes the pictures: that takes SciPy
        answer = subprocess.run(
            [sys.executable, "-c", NAMING, f"hydra.run.dir={place / 'run'}", *SMOKE,
             "tracking.mode=offline"],
            cwd=place, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        (place / "answer.json").write_text(json.dumps(vars(answer)))

    place = made_once(tmp_path_factory, "finished", make)
    answer = json.loads((place / "answer.json").read_text())
    return place / "run", subprocess.CompletedProcess(**answer)


@dataclass(frozen=True)
class PngImage:
    """A picture from an array, encoded as PNG."""

    name: str
    pixels: np.ndarray

    def read(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "PNG")
        return buffer.getvalue()


@pytest.fixture(scope="session")
def vqa_rad_run(shared, tmp_path_factory) -> Path:
    """A finished run of the tiny model on a few real rows; its answers mean nothing.

    Secrets stand in the environment while it runs, for a test that looks for them.
    """
    overrides = [
        *("experiment=smoke", "data=vqa_rad", f"data.path={shared / 'data' / 'vqa_rad'}"),
        *(f"data.evaluation.test.limit={NUM_QUESTIONS}", f"data.evaluation_limit={NUM_QUESTIONS}"),
        *("evaluation.after_each_stage=false", "evaluation.bertscore.enabled=false"),
        "tracking.pictures=false",
    ]

    def make(place: Path) -> None:
        words = (f"hydra.run.dir={place / 'run'}", *overrides)
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **dict.fromkeys(SECRET_NAMES, SECRET)}
        answer = Forked(TRAIN, *words, imports=LIBRARIES, cwd=place, env=env).wait()
        assert answer.returncode == 0, answer.stderr

    return made_once(tmp_path_factory, "vqa_rad", make) / "run"


@pytest.fixture(scope="session")
def merged_model(vqa_rad_run, tmp_path_factory) -> Path:
    """The same run, merged into its base."""

    def make(place: Path) -> None:
        export(ExportOptions(run=vqa_rad_run, target=place / "model", is_merged=True))

    return made_once(tmp_path_factory, "merged", make) / "model"
