"""Commands in processes that are forked from one which has imported what they need.

Torch, transformers and PEFT cost three seconds of a processor per process, Hydra a third of one.
A forked process has arguments, environment, streams, signals and exit code like a started one.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

CLI = (
    "import medvqa.cli; from medvqa.config.compose import register; register(); "
    "from hydra.core.plugins import Plugins; Plugins.instance()"
)
LIBRARIES = f"{CLI}; from medvqa.models.load import import_alone; import_alone()"
TRAIN = "import sys; sys.argv[0] = 'train.py'; from medvqa.cli import main; main()"
PARENT = """
import gc, json, os, sys
exec(sys.argv[1])
gc.freeze()
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        break
    print(pid, file=answers, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
else:
    sys.exit()
job = json.loads(line)
for number, name in enumerate((os.devnull, job["stdout"], job["stderr"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
os.closerange(3, 256)
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["env"])
sys.argv = ["-c", *job["arguments"]]
exec(job["program"], {"__name__": "__main__"})
"""


@functools.cache
def parent(imports: str) -> "subprocess.Popen[str]":
    """Return a process with these imports, which ends with this one."""
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, imports],
        env={**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # it lives on when a test ends its own group
    )
    atexit.register(process.communicate)
    return process


class Forked:
    """A running program; one at a time per set of imports.

    Attributes:
        returncode: Negative for a signal; None until `wait`.
    """

    def __init__(
        self, program: str, *arguments: str, imports: str, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self._parent = parent(imports)
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._streams:
            path.touch()
        names = dict(zip(("stdout", "stderr"), map(str, self._streams), strict=True))
        job = {"program": program, "arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        self._parent.stdin.write(json.dumps(job | names) + "\n")
        self._parent.stdin.flush()
        self.pid = int(self._parent.stdout.readline())
        self.returncode: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send the signal to the process alone."""
        os.kill(self.pid, number)

    def wait(self) -> "subprocess.CompletedProcess[str]":
        """Return how the process ended and what it printed."""
        self.returncode = int(self._parent.stdout.readline())
        output, errors = (path.read_text() for path in self._streams)
        self._folder.cleanup()
        return subprocess.CompletedProcess([], self.returncode, output, errors)
