"""The command line: `python train.py ...` and `medvqa COMMAND ...`; imports nothing heavy."""

import difflib
import io
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from medvqa.config.command_line import COLUMNS, example_lines
from medvqa.config.compose import checked, config_directory, register, run_settings, with_roles
from medvqa.config.errors import (
    MISTAKES,
    RankError,
    Refused,
    explain,
    machine_mistake,
    plain_mistake,
    printable,
)
from medvqa.config.machine import leave_at_once, take_gpu_memory_in_pages
from medvqa.config.secrets import masked_text
from medvqa.sweep.launcher import SweepError

log = logging.getLogger("medvqa")

MAX_MESSAGE = 2000  # characters
MISTAKE = 2  # exit code

GROUPS = {
    "before a run": {
        "doctor": "say what this machine can run, and how to mend what is missing",
        "preflight": "check a run or a grid before it costs GPU hours: data, memory, leaks",
    },
    "runs and grids": {
        "train": "train and evaluate; the same as `python train.py`",
        "evaluate": "evaluate a base, a saved adapter or a server without training",
        "status": "show a grid as a table",
        "resume": "run what is unfinished of a grid",
    },
    "results": {
        "report": "compare the runs of grids: tables, figures, one HTML page",
        "score": "score an answers file by any protocol of the field",
        "compare": "compare two or more answers files on the same questions",
        "calibrate": "temperature and abstention threshold, with a bound on the error rate",
        "dashboard": "make a W&B workspace for a project's runs",
    },
    "a trained model": {
        "export": "write a finished run as an adapter or merged weights, with a model card",
        "serve": "answer questions over HTTP, as OpenAI's chat completions",
        "demo": "a page to ask a trained model about images",
        "mcp": "serve the agent's tool to MCP clients",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}
EXAMPLES = {
    "medvqa train": "the tiny model on drawn pictures; needs no GPU",
    "medvqa report --help": "options and examples of one command",
}
HANDLERS = {
    "preflight": "medvqa.preflight.command:main_preflight",
    "doctor": "medvqa.preflight.doctor:main_doctor",
    "status": "medvqa.sweep.commands:main_status",
    "resume": "medvqa.sweep.commands:main_resume",
    "report": "medvqa.report.report:main_report",
    "score": "medvqa.evaluation.score_file:main_score",
    "compare": "medvqa.report.compare:main_compare",
    "calibrate": "medvqa.evaluation.calibrate_command:main_calibrate",
    "export": "medvqa.export.command:main_export",
    "serve": "medvqa.serve.command:main_serve",
    "demo": "medvqa.serve.demo:main_demo",
    "mcp": "medvqa.serve.agents:main_mcp",
    "dashboard": "medvqa.tracking.dashboard:main_dashboard",
}


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="config")
def train(cfg: DictConfig) -> float | None:
    """Check the config, then run it."""
    is_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        return _run(cfg, is_sweep=is_sweep)
    except MISTAKES as error:
        if is_sweep:  # the other jobs go on
            raise
        raise Refused from error
    except Exception as error:
        mistake = machine_mistake(error)
        if mistake and not is_sweep:
            raise Refused from mistake
        text = "the run failed; the same command goes on from its last checkpoint"
        if isinstance(error, RankError):  # whose message says all
            log.error("%s: %s", text, error)
        else:
            log.exception(text)
        if is_sweep:
            raise
        raise SystemExit(1) from None  # the traceback has been shown, and is in the run's log


def _run(cfg: DictConfig, *, is_sweep: bool) -> float | None:
    config = checked(cfg)
    from medvqa.evaluation.results import headline, show_results
    from medvqa.models.load import load_in_own_process
    from medvqa.run import ProcessState, run

    job, directory = HydraConfig.get(), Path(HydraConfig.get().runtime.output_dir)
    settings = run_settings(cfg, job) | {"sweep": Path(job.sweep.dir).name if is_sweep else None}
    evaluations = run(config, directory, settings, ProcessState(load_in_own_process))
    show_results(evaluations, directory)
    return headline(evaluations, config.data.evaluation)


def main() -> None:
    """Entry of `train.py` and of the console script."""
    leave_at_once()
    take_gpu_memory_in_pages()
    if Path(sys.argv[0]).name != "train.py":
        _dispatch(sys.argv[1] if len(sys.argv) > 1 else "--help")
        command = sys.argv.pop(1)
        if command == "evaluate":
            # Beside the other overrides: argparse takes them in one piece only.
            places = [n for n, text in enumerate(sys.argv) if "=" in text and text[0] != "-" and n]
            sys.argv.insert(min(places, default=len(sys.argv)), "only_evaluate=true")
            if _asks_for_help():
                sys.argv.append("hydra/help=evaluate")
    sys.argv[1:] = with_roles(sys.argv[1:])
    register()
    guarded(_wrapped_help if _asks_for_help() else train)


def _asks_for_help() -> bool:
    return not {"-h", "--help"}.isdisjoint(sys.argv)


def _wrapped_help() -> None:
    """Print Hydra's help in 100 columns; Hydra writes each list of choices as one long line."""
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):  # it exits with 0
        train()
    for line in output.getvalue().rstrip().splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        text = textwrap.fill(line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)
        sys.stdout.write(f"{text}\n")


def _dispatch(command: str) -> None:
    """Leave with the command's result, or return if the command is `train`."""
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        groups = [
            f"{title}:\n" + "".join(f"  {name:<{width}}   {text}\n" for name, text in group.items())
            for title, group in GROUPS.items()
        ]
        head, tail = "usage: medvqa COMMAND ...\n", f"examples:\n{example_lines(EXAMPLES)}\n"
        sys.stdout.write("\n".join([head, *groups, tail]))
        sys.exit(0)
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean `medvqa {near[0]}`?" if near else ""
        _fail(f"unknown command {command!r}{hint}\n  known: {', '.join(COMMANDS)}", 2)
    if command in HANDLERS:
        module, _, function = HANDLERS[command].partition(":")
        handler = getattr(import_module(module), function)
        guarded(lambda: handler(sys.argv[2:]))
        sys.exit(0)


def guarded(action: Callable[[], Any]) -> None:
    """Run the action; a user's mistake becomes one line and exit code 2.

    A session or a scheduler that ends the process is Ctrl-C for it: run.json says interrupted.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under `nohup` a hang-up is ignored
            signal.signal(number, signal.default_int_handler)
    before = os.environ.get("HYDRA_FULL_ERROR")
    # By default Hydra prints its own message and exits. With this it raises, and we print ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        action()
    except (Refused, KeyboardInterrupt, Exception) as error:
        cause = error.__cause__ if isinstance(error, Refused) else error
        assert cause is not None
        mistake = machine_mistake(cause) or cause
        text, code = _ending(mistake)
        if code == MISTAKE and before not in (None, "", "0"):
            raise mistake from None
        _fail(text, code=code)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _ending(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error; raise one that is a fault of ours."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from the last checkpoint", 130
    if isinstance(error, SweepError):
        return str(error), 1
    if isinstance(error, MISTAKES):
        return explain(error), MISTAKE
    if str(error).startswith("Only one of --run"):  # Hydra's own check of its flags
        return "--cfg and --info show one run: leave -m out, and give one value per key", MISTAKE
    if text := plain_mistake(error):
        return text, MISTAKE
    raise error


def _fail(text: str, code: int) -> None:
    text = "\n".join(map(printable, masked_text(text).split("\n")))
    if len(text) > MAX_MESSAGE:  # the beginning names the mistake, the end the way out
        text = f"{text[: MAX_MESSAGE - 500]} ... {text[-400:]}"
    sys.stderr.write(f"medvqa: {text}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
