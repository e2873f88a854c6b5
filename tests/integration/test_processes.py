"""What a single process imports, and with how many threads it computes."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment
from tests.forked import LIBRARIES, Forked


def test_an_encoding_thread_computes_alone_and_its_caller_as_before():
    """In a process of its own: how many threads compute is decided when PyTorch first asks."""
    code = (
        "import torch; from medvqa.data.prefetch import ahead\n"
        "from medvqa.models.encode import encode_alone\n"
        "found = ahead(lambda _: torch.get_num_threads(), [1, 2], num_threads=1, "
        "initializer=encode_alone())\n"
        "print(*found, torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["1", "1", "2"]


def test_the_doctor_imports_no_model_library():
    code = "import sys; from medvqa.preflight.doctor import main_doctor; main_doctor([])\n"
    code += "print(*{'torch', 'transformers'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == ""


def test_disabled_tracking_never_imports_wandb() -> None:
    code = """
import sys
from pathlib import Path
from medvqa.config.tracking import TrackingConfig, TrackingMode
from medvqa.tracking.wandb_mirror import tracker
config = TrackingConfig(mode=TrackingMode.disabled)
with tracker(config, Path("nowhere"), {}) as run:
    run.log({"train/loss": 1.0}, step=1)
    run.log_predictions("rad", Path("none.jsonl"), [])
    run.summarize({"a": 1.0})
assert "wandb" not in sys.modules
assert not Path("nowhere").exists()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


READS_A_BASELINE = """
import sys
from medvqa.evaluation.bertscore import _scorer, minilm_directory
scorer = type(_scorer("minilm", None, False, "cpu"))(
    model_type=str(minilm_directory()), num_layers=6, rescale_with_baseline=True, lang="en",
    baseline_path=sys.argv[1],
)
assert "pandas" not in sys.modules
print(scorer.score(["left lung"], ["left lung"])[2].item(), *scorer.baseline_vals.tolist())
"""


def test_bert_score_reads_a_baseline_although_pandas_is_imported_late(tmp_path):
    table = tmp_path / "baseline.tsv"
    table.write_text("LAYER,P,R,F\n" + "".join(f"{layer},0.5,0.5,0.5\n" for layer in range(7)))
    program = Forked(
        READS_A_BASELINE, str(table), imports=LIBRARIES, cwd=tmp_path, env=environment()
    )
    answer = program.wait()
    assert answer.returncode == 0, answer.stderr
    assert [*map(float, answer.stdout.split())] == pytest.approx([1, 0.5, 0.5, 0.5], abs=1e-5)
