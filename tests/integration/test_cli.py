"""The command line: each mistake is one line, exit code 2, and costs no heavy import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from medvqa.cli import COMMANDS, guarded
from medvqa.config.errors import UserError, explain
from tests.forked import CLI, Forked

ROOT = Path(__file__).parents[2]
HEAVY = "torch transformers datasets wandb unsloth peft trl bert_score numpy"
# Runs main as `train.py` or as the console script, then says which heavy libraries were imported.
PROGRAM = f"""
import sys
sys.argv = sys.argv[1:]
from medvqa.cli import main
try:
    main()
finally:
    print("HEAVY:", *sorted(set("{HEAVY}".split()) & set(sys.modules)))
"""
CRASH = "import medvqa.run\ndef crash(*_, **__): raise RuntimeError('boom')\nmedvqa.run.run = crash"


def started(directory, *arguments, program=PROGRAM, environment=()):
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HYDRA_FULL_ERROR": "",
        **dict(environment),
    }
    return Forked(program, *arguments, imports=CLI, cwd=directory, env=variables).wait()


def assert_one_clear_line(answer, *texts):
    assert answer.returncode == 2, answer.stderr
    first, *more = answer.stderr.splitlines()
    assert first.startswith("medvqa: ")
    assert len(more) <= 2 and all(line.startswith("  ") for line in more)
    for text in texts:
        assert text in answer.stderr
    assert answer.stdout.splitlines()[-1] == "HEAVY:"


CURRICULA = [path.stem for path in (ROOT / "conf" / "curriculum").glob("*.yaml")]
MISTAKES = {
    "option": ("model=tinny", ["option 'tinny' in config group 'model'", "mean model=tiny?"]),
    "options": ("curriculum=x", ["known: ", *CURRICULA]),
    "group": ("modle=tiny", ["unknown key 'modle'; did you mean model= or model_name=?"]),
    "key": ("lora.droput=0.1", ["unknown key 'lora.droput'; did you mean lora.dropout=?"]),
    "added key": ("+unknown=1", ["unknown key 'unknown'", "known: model, data"]),
    "added nested key": ("+lora.rr=8", ["unknown key 'lora.rr'", "known: r, alpha"]),
    "added group": ("+experiment=smoke", ["experiment"]),
    "type": ("lora.r=abc", ["lora.r=abc", "could not be converted to Integer"]),
    "none": ("data.limit=none", ["data.limit=none", "write null"]),
    "missing value": ("data.split=???", ["missing value: give data.split=..."]),
    "missing group": ("~lora", ["missing value: give lora=..."]),
    "range": ("lora.dropout=2", ["lora.dropout must be in [0, 1), got 2.0"]),
    "override": ("data.name=a=b", ["cannot read the override 'data.name=a=b'"]),
    "enum": ("evaluation.normalizer=sqad", ["'sqad'", "[medical, squad, vqa, punctuation]"]),
    "interpolation": ("data.path=${nope}", ["'nope' not found"]),
    "training split": ("data.split=test", ["contains training rows", "allow_training_rows=true"]),
    "no GPU": ("model=qwen3_vl_8b", ["no CUDA GPU is visible", "model.device=cuda"]),
    "4-bit": ("model.load_in_4bit=true", ["no CUDA GPU is visible", "model.load_in_4bit=true"]),
    "infinite": ("training.learning_rate=inf", ["training.learning_rate must be in", "got inf"]),
    "64 bits": ("training.max_steps=9223372036854775808", ["max_steps must be in [0, 1000000]"]),
    "negative seed": ("data.seed=-1", ["data.seed must be in [0, 4294967295], got -1"]),
    "long path": (f"model.path={'x' * 5000}", ["model.path is too long"]),
    "renamed key": ("lora.rank=8", ["unknown key 'lora.rank'; did you mean lora.r=?"]),
    "optional group": ("training=tinny", ["option 'tinny' in config group 'training'"]),
    "tilde": ("data.path=~/set", ["write \"data.path='~/set'\""]),
    "endless stage": (
        "curriculum.stages=[{name:a,filter:all,epochs:inf}]",
        ["curriculum.stages[0].epochs must be in (0, 10000], got inf"],
    ),
    "several values": ("lora=default,x", ["lora=default,x", "needs -m"]),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    directories = {name: tmp_path_factory.mktemp("refused") for name in MISTAKES}
    answers = {name: started(directories[name], "train.py", MISTAKES[name][0]) for name in MISTAKES}
    return {name: (answers[name], directories[name]) for name in MISTAKES}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(refusals, name):
    answer, directory = refusals[name]
    assert_one_clear_line(answer, *MISTAKES[name][1])
    assert list(directory.iterdir()) == []


def test_four_bits_on_a_chosen_cpu_contradict_each_other(tmp_path):
    answer = started(tmp_path, "train.py", "model.device=cpu", "model.load_in_4bit=true")
    assert_one_clear_line(answer, "model.load_in_4bit=true needs a GPU but model.device=cpu")


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_directory_that_cannot_be_made_is_one_line_with_the_setting(tmp_path, key):
    (tmp_path / "file").write_text("in the way")
    sweep = ["-m", "seed=1,2"] if key == "hydra.sweep.dir" else []
    answer = started(tmp_path, "train.py", *sweep, f"{key}={tmp_path}/file/run")
    assert_one_clear_line(answer, f"cannot write to {tmp_path}/file/run", f"give {key}=")


SWEEPS = {
    "+hydra.sweeper.params.x=": "hydra.sweeper.params.x belongs in an experiment's file",
    "hydra.sweeper.params={seed:'1,2'}": "on the command line write -m KEY=VALUE,VALUE",
    "experiment=phantom_study hydra.sweeper.params.seed=": "seed=: Value '' of type 'str'",
    "experiment=phantom_study hydra.sweeper.params.seed='1,,2'": "the override 'seed=1,,2'",
    "experiment=phantom_study hydra.sweeper.params.lr=1": "no hydra.sweeper.params.lr; write +",
    "hydra.sweeper=optuna": "hydra.sweeper=optuna is no choice; write hydra/sweeper=optuna",
    "hydra.launcher=slurm": "hydra.launcher=slurm is no choice; write hydra/launcher=slurm",
    "hydra.sweep.dir=": "hydra.sweep.dir= names no directory",
    "hydra.sweep.dir='~nobody-of-this-name/x'": "(Could not determine home directory.)",
    "hydra.sweep.dir=${nope}": "hydra.sweep.dir: Interpolation key 'nope' not found",
    "seed=range(1,3,0)": "range() arg 3 must not be zero",
    "+lora.target_modules.x=1,2": "because lora.target_modules is null; give that a value",
}


@pytest.mark.parametrize("words", SWEEPS)
def test_a_malformed_sweep_is_one_line_and_leaves_nothing_behind(tmp_path, words):
    answer = started(tmp_path, "train.py", "-m", *words.split())
    assert_one_clear_line(answer, SWEEPS[words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "hydra.launcher.slots=all",
            "slots must be auto, a number from 1 or a list of GPUs, got all",
        ),
        ("+hydra.launcher.slot=1", "got an unexpected keyword argument 'slot'"),
    ],
)
def test_a_launcher_s_own_mistake_is_one_line(tmp_path, override, text):
    answer = started(tmp_path, "train.py", "-m", "seed=1,2", override)
    assert_one_clear_line(answer, text)


def test_flags_of_hydra_that_exclude_each_other_are_one_line(tmp_path):
    answer = started(tmp_path, "train.py", "-m", "--cfg", "job", "seed=1,2")
    assert_one_clear_line(answer, "--cfg and --info show one run: leave -m out")
    assert list(tmp_path.iterdir()) == []


def test_a_message_is_cut_in_the_middle_and_keeps_its_way_out(capsys):
    def mistaken():
        raise UserError("begins " + "x" * 9000 + "; say fresh=true")

    with pytest.raises(SystemExit) as left:
        guarded(mistaken)
    message = capsys.readouterr().err
    assert left.value.code == 2
    assert len(message) < 3000
    assert message.startswith("medvqa: begins x")
    assert message.endswith("say fresh=true\n")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.name=phantm"], "unknown data set 'phantm'; did you mean phantom?"),
        (["data=jsonl", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_mistake_in_the_data_is_one_line_too(tmp_path, overrides, text):
    answer = started(tmp_path, "train.py", *overrides)
    assert_one_clear_line(answer, text)


def test_a_quota_above_the_pool_is_refused_before_the_model_loads(tmp_path):
    stages = "curriculum.stages=[{name:a,filter:open,steps:3,quota:100000}]"
    answer = started(tmp_path, "train.py", stages)
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: curriculum stage 'a': quota=100000")
    assert len(answer.stderr.splitlines()) == 1
    assert "torch" not in answer.stdout.splitlines()[-1]  # numpy draws the phantoms


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (["lora.dropout=0,2"], ["job lora.dropout=2: lora.dropout must be in [0, 1)"]),
        (["model=tiny,qwen3_vl_8b", "seed=1,2"], ["job model=qwen3_vl_8b seed=1: no CUDA GPU"]),
        (["lora=default,r9"], ["unknown option 'r9' in config group 'lora'"]),
        (["lora.r=8,x"], ["lora.r=x", "could not be converted to Integer"]),
    ],
)
def test_a_sweep_with_one_bad_cell_starts_no_job(tmp_path, overrides, texts):
    assert_one_clear_line(started(tmp_path, "train.py", "-m", *overrides), *texts)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_mistake_is_named(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    bad = tmp_path / "conf" / "experiment" / "bad.yaml"
    bad.write_text("# @package _global_\nlora:\n  rnk: 8\n", encoding="utf-8")
    arguments = ("train.py", "--config-dir", "conf", "experiment=bad")
    answer = started(tmp_path, *arguments)
    assert_one_clear_line(answer, "experiment/bad.yaml: unknown key 'lora.rnk'; did you mean")
    bad.write_text("lora: - rank\n", encoding="utf-8")
    assert_one_clear_line(started(tmp_path, *arguments), "bad.yaml, line 1: ")


def test_a_traceback_is_shown_to_who_asks_for_it(tmp_path):
    answer = started(
        tmp_path, "train.py", "lora.dropout=2", environment={"HYDRA_FULL_ERROR": "1"}.items()
    )
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "UserError: lora.dropout must be in [0, 1), got 2.0" in answer.stderr


def test_a_crash_is_no_mistake_and_its_traceback_is_in_the_runs_log(tmp_path):
    answer = started(tmp_path, "train.py", program=CRASH + PROGRAM)
    assert answer.returncode == 1
    assert answer.stderr.count("RuntimeError: boom") == 1
    (log,) = tmp_path.glob("outputs/*/medvqa.log")
    assert "RuntimeError: boom" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["train.py"], ["medvqa", "train"]])
def test_help_lists_the_groups_without_a_heavy_import(tmp_path, arguments):
    answer = started(tmp_path, *arguments, "--help")
    assert answer.returncode == 0, answer.stderr
    for line in ("model: ", "qwen2_vl_2b_4bit, ", "phantom, ", "python train.py -m"):
        assert line in answer.stdout
    assert answer.stdout.splitlines()[-1] == "HEAVY:"


def test_showing_the_config_runs_nothing(tmp_path):
    answer = started(tmp_path, "train.py", "--cfg", "job", "lora.r=8")
    assert answer.returncode == 0, answer.stderr
    assert "r: 8" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["medvqa"], ["medvqa", "--help"]])
def test_the_console_script_lists_its_commands(tmp_path, arguments):
    answer = started(tmp_path, *arguments)
    assert answer.returncode == 0
    listed = answer.stdout.partition("examples:")[0].splitlines()
    commands = [line.split()[0] for line in listed if line.startswith("  ")]
    assert commands == list(COMMANDS)
    assert {"train", "score", "serve"} <= set(commands)


def test_an_unknown_command_is_refused_with_the_nearest_one(tmp_path):
    answer = started(tmp_path, "medvqa", "scor")
    assert_one_clear_line(answer, "unknown command 'scor'; did you mean `medvqa score`?")


def test_a_mistake_in_another_command_is_one_line(tmp_path):
    answer = started(tmp_path, "medvqa", "score", "nowhere.jsonl")
    assert_one_clear_line(answer, "nowhere.jsonl")


def test_an_interrupt_exits_with_130_and_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        guarded(interrupted)
    assert left.value.code == 130
    assert capsys.readouterr().err == (
        "medvqa: interrupted; the same command goes on from the last checkpoint\n"
    )


def test_explain_keeps_our_own_words_and_shortens_hydras():
    assert explain(UserError("row 3: no image")) == "row 3: no image"
    assert explain(HydraException("first line\nsecond line")) == "first line"


@pytest.mark.parametrize("module", ["medvqa.cli", "medvqa.sweep.worker"])
def test_a_process_ends_without_a_last_walk_through_its_objects(module):
    code = (
        "import atexit, gc, importlib, sys; sys.argv = ['medvqa', '--help']\n"
        "atexit.register(lambda: print('end', gc.isenabled(), gc.get_freeze_count() > 1000))\n"
        f"importlib.import_module({module!r}).main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.splitlines()[-1] == "end False True"


@pytest.mark.parametrize("command", ["status", "resume", "report", "export", "dashboard"])
def test_a_path_that_the_system_refuses_is_one_line(command, tmp_path):
    answer = started(tmp_path, "medvqa", command, "x" * 5000)
    assert_one_clear_line(answer, "cannot use xxx", "(File name too long)")


def test_resume_with_a_mistake_is_one_line_as_the_grid_itself_would_give(tmp_path):
    grid = {"jobs": [], "arguments": ["-m", "seed=1,2"], "working_directory": str(tmp_path)}
    (tmp_path / "sweep.json").write_text(json.dumps(grid))
    answer = started(tmp_path, "medvqa", "resume", str(tmp_path), "seed=-1,2")
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "medvqa: job seed=-1: seed must be in [0, 4294967295], got -1"
    ]
