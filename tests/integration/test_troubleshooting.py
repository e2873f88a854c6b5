"""Each command of docs/troubleshooting.md ends with the message that stands beside it."""

import re
import shlex

import pytest
from hydra.core.global_hydra import GlobalHydra

from medvqa.cli import main
from medvqa.models.hub import hub_answers
from tests.conftest import ROOT

ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No GPU, network, key or scheduler; Hydra as a new process has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MEDVQA_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()
    GlobalHydra.instance().clear()


def test_there_are_twenty_or_more():
    assert len(ROWS) >= 20


@pytest.mark.parametrize(("command", "message"), [row[:2] for row in ROWS], ids=lambda text: text)
def test_the_command_ends_with_the_message(command, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["medvqa", *shlex.split(command)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err
