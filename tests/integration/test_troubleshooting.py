"""Each command of docs/troubleshooting.md ends with the message that stands beside it."""

import re
import shlex

import pytest
from hydra.core.global_hydra import GlobalHydra

from medvqa.cli import main
from medvqa.models.source import hub_answers
from tests.conftest import ROOT

ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = ROW.findall(PAGE.partition("## Messages of a run")[0])
# Messages of a run that has begun: `code` stands for a value.
BEGUN = re.findall(
    r"^\| ([^`|].*?|`[A-Z\d]+` .*?) \| .+? \|$",
    PAGE.partition("## Messages of a run")[2],
    re.MULTILINE,
)


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


@pytest.mark.parametrize("message", BEGUN[1:], ids=lambda text: text[:60])
def test_the_message_of_a_run_that_has_begun_is_in_the_code(message):
    files = sorted((ROOT / "medvqa").rglob("*.py"))
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # the pieces of one text
    fixed = [part.strip(" ()") for part in re.sub(r"`[^`]*`", "`", message).split("`")]
    assert [part for part in fixed if part not in code] == []
