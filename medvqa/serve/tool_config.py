"""The tool's config: which service answers, and what it may be asked; one YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import OmegaConf

from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.config.typed import typed_group
from medvqa.serve.intake import Limits


class Service(Enum):
    """What answers: a run loaded here, or an endpoint that speaks OpenAI's chat completions."""

    in_process = "in_process"
    openai = "openai"


class Resize(Enum):
    """Who scales an image to the run's pixel budget.

    `endpoint`: it gets the pixels as they came, and applies the budget itself, as `medvqa serve`
    does. `tool`: the image arrives in the size that the evaluator would have made of it, for
    endpoints whose budget is another.
    """

    endpoint = "endpoint"
    tool = "tool"


@dataclass(kw_only=True)
class ToolConfig:
    """The tool.

    Attributes:
        run: Run or export that answers in process; for an endpoint, the run whose token limit and
            pixel budget hold there too.
        device: Of a run in process.
        base_url: Of the endpoint, up to and with /v1.
        model: What the endpoint calls the model.
        api_key_env: Environment variable that holds the endpoint's key; the key itself never
            stands in a file.
        max_new_tokens: Limit of an endpoint's answer; the run's where null, else 32.
        allowed_roots: Local images may lie below these directories only.
        timeout_s: For an endpoint's answer.
    """

    service: Service = Service.in_process
    run: str | None = None
    device: Device = Device.auto
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    max_new_tokens: int | None = None
    resize: Resize = Resize.endpoint
    allowed_roots: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        """Check contradictions and that no secret stands here."""
        if self.service is Service.in_process:
            self._check_in_process()
        else:
            self._check_endpoint()
        for root in self.allowed_roots:
            if not Path(root).is_absolute() or not Path(root).is_dir():
                raise ValueError(f"allowed_roots: {root} is no directory with an absolute path")

    def _check_in_process(self) -> None:
        if self.run is None:
            raise ValueError("service=in_process needs run=DIRECTORY, a finished run or an export")
        names = [
            name
            for name in ("base_url", "model", "api_key_env", "max_new_tokens")
            if getattr(self, name) is not None
        ] + ["resize"] * (self.resize is Resize.tool)
        if names:
            raise ValueError(
                f"{', '.join(names)}: only for service=openai; in process the run decides"
            )

    def _check_endpoint(self) -> None:
        if self.base_url is None or self.model is None:
            raise ValueError("service=openai needs base_url and model")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must begin with http:// or https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold no user, password or query; a key goes into the environment "
                "variable that api_key_env names"
            )
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            # Not repeated here: who mistakes it writes the key itself.
            raise ValueError("api_key_env must be the name of an environment variable")
        if self.resize is Resize.tool and self.run is None:
            raise ValueError("resize=tool needs run=DIRECTORY, whose pixel budget it is")

    def api_key(self, environment: Mapping[str, str]) -> str | None:
        """Return the endpoint's key.

        Raises:
            UserError: If the variable is named but not set.
        """
        if self.api_key_env is None:
            return None
        key = environment.get(self.api_key_env)
        if not key:
            raise UserError(f"api_key_env={self.api_key_env}, but that variable is not set")
        return key


def read_tool_config(path: Path | None, overrides: Sequence[str] = ()) -> ToolConfig:
    """Return the checked config of a YAML file and `key=value` overrides.

    Raises:
        UserError: If the file is missing or no YAML mapping, or a value is out of range.
        OmegaConfBaseException: On an unknown key or a wrong type.
    """
    values = OmegaConf.create({})
    if path is not None:
        if not path.is_file():
            raise UserError(f"no config {path}; docs/tool.md shows one")
        values = OmegaConf.load(path)  # type: ignore[assignment]
        if not OmegaConf.is_dict(values):
            raise UserError(f"{path} is no mapping of keys to values")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"cannot read {override!r}; write key=value")
    merged: Any = OmegaConf.merge(values, OmegaConf.from_dotlist(list(overrides)))
    return typed_group(ToolConfig, merged)
