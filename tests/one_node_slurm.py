"""A real Slurm of one node on loopback, from Debian's packages, with two fake GPUs.

    python -m tests.one_node_slurm DIRECTORY      starts it until Ctrl-C

Needs root. Without accounting on purpose: `sacct` fails there, as on many small clusters.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONF = """
ClusterName=medvqa
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
GRES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
CGROUP = "CgroupPlugin=autodetect\nCgroupAutomount=no\nConstrainDevices=no\n"


def why_not() -> str | None:
    """Return what is missing on this machine, or None."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in NEEDED if shutil.which(name, path=places) is None]
    if absent:
        return f"no {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "Slurm's daemons need root" if os.geteuid() != 0 else None


@contextmanager
def one_node(directory: Path) -> Iterator[Mapping[str, str]]:
    """Run the cluster; yield the environment in which `sbatch` finds it."""
    (directory / "state").mkdir(parents=True)
    (directory / "spool").mkdir()
    host = socket.gethostname().split(".")[0]
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    conf = CONF.format(host=host, directory=directory, **ports)
    (directory / "slurm.conf").write_text(conf)
    (directory / "gres.conf").write_text(GRES)
    (directory / "cgroup.conf").write_text(CGROUP)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(directory / "slurm.conf")}
    munged = [
        *("munged", "--foreground", "--force", f"--key-file={key}"),
        *(f"--socket={directory}/munge.socket", f"--pid-file={directory}/munged.pid"),
        *(f"--log-file={directory}/munged.log", f"--seed-file={directory}/munged.seed"),
    ]
    with ExitStack() as daemons:
        for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            daemons.enter_context(_daemon(command, environment, directory))
        _wait_until_idle(environment, directory)
        yield environment


@contextmanager
def _daemon(command: list[str], environment: Mapping[str, str], directory: Path) -> Iterator[None]:
    with (directory / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            if command[0] == "munged":
                _wait_for((directory / "munge.socket").exists, directory)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_idle(environment: Mapping[str, str], directory: Path) -> None:
    def is_idle() -> bool:
        answer = subprocess.run(
            ["sinfo", "-h", "-o", "%t"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return answer.stdout.strip() == "idle"

    _wait_for(is_idle, directory)


def _wait_for(condition, directory: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            logs = [path.read_text()[-1500:] for path in directory.glob("*.log")]
            raise RuntimeError("Slurm does not start:\n" + "\n".join(logs))
        time.sleep(0.1)


if __name__ == "__main__":
    with one_node(Path(sys.argv[1]).resolve()) as variables:
        sys.stdout.write(f"export SLURM_CONF={variables['SLURM_CONF']}\n")
        sys.stdout.flush()
        signal.pause()
