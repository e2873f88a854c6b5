"""Where a base comes from, and its processor: all of it that is known without its weights."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

from medvqa.config.errors import UserError, first_line
from medvqa.config.machine import cache_directory
from medvqa.config.model import ModelConfig
from medvqa.models.families import qwen
from medvqa.models.families.processor import set_image_options

MODEL_FILES = (".json", ".jinja", ".safetensors", ".bin", ".txt", ".model", ".tiktoken")
END_BYTES = 4 * 2**20
NO_NETWORK = "(no network? give model.path=, a local copy in the hub's layout)"
EMBEDDED = {"medvqa/tiny": Path(__file__).parents[1] / "weights" / "tiny"}
HUB_PATIENCE_S = 5.0
SPEAKING_FOLDER = "bases"  # below the cache's directory
SPEAKING = "medvqa/speaking-"


def model_source(config: ModelConfig) -> str:
    """Return where the base comes from, before anything slow starts.

    Raises:
        UserError: If the local directory is missing or is no model.
    """
    path = base_folder(config)
    if path is None and config.name.startswith("medvqa/"):
        size = config.name.removeprefix("medvqa/")
        raise UserError(
            f"{config.name} comes without weights: in a checkout, build them with "
            f"`python -m tools.build_base --size {size} --output DIR`, then give model.path=DIR"
        )
    if path is None:
        return config.name
    if not (path / "config.json").is_file():
        raise UserError(
            f"model.path={path} holds no config.json; give a directory in the hub's layout"
            if config.path
            else f"the embedded model is missing at {path}; run python -m tools.build_base"
        )
    return str(path)


def base_folder(config: ModelConfig) -> Path | None:
    """Return where the base lies on this machine; None for one of the hub."""
    if config.path:
        return Path(config.path)
    if config.name.startswith(SPEAKING):
        return _speaking_base(config.name.removeprefix("medvqa/"))
    return EMBEDDED.get(config.name)


def files_sha256(folder: Path) -> str:
    """Return a hash over the files of a base or an adapter.

    Of a large file, its size and both ends count: a base of 16 GB must not be read at each start.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in MODEL_FILES:
            size = file.stat().st_size
            with file.open("rb") as opened:
                content = opened.read(END_BYTES)
                opened.seek(max(len(content), size - END_BYTES))
                content += opened.read(END_BYTES)
            digest.update(f"{file.name} {size}\n".encode() + content)
    return digest.hexdigest()


def _speaking_base(name: str) -> Path:
    """Return the one base that was built for a data set's training split.

    Raises:
        UserError: If there is none, or if several recipes made one.
    """
    folder = cache_directory(os.environ) / SPEAKING_FOLDER
    bases = sorted(path.parent for path in folder.glob(f"{name}-*/config.json"))
    if len(bases) > 1:
        choices = ", ".join(f"model.path={path}" for path in bases)
        raise UserError(f"several recipes made a base {name}; choose one: {choices}")
    if bases:
        return bases[0]
    split = name.rpartition("-")[2]
    rows = f" --vqa-rad DIR --split {split}" if "-vqa_rad-" in name else ""
    raise UserError(
        f"{folder} holds no base {name}: in a checkout, build it with `python -m "
        f"tools.build_speaking_base --parts WHEELS{rows}` (docs/models.md names the wheels)"
    )


def load_processor(config: ModelConfig, *, local_only: bool = False) -> Any:
    """Return the base's processor with the run's pixel budget.

    Args:
        config: Of the model.
        local_only: Take what is on the disk and do not wait for a hub that cannot be reached.

    Raises:
        UserError: If it cannot be loaded.
    """
    from transformers import AutoProcessor

    processor = from_pretrained(AutoProcessor, config, local_files_only=local_only)
    if getattr(processor, "image_processor", None) is None:
        raise UserError(
            f"{model_source(config)} takes no pictures: its processor is {type(processor).__name__}"
        )
    set_sizes(processor, config)
    return processor


def set_sizes(processor: Any, config: ModelConfig) -> None:
    """Set how large the family's pictures become.

    Raises:
        UserError: If the family has no such setting, or does not obey it.
    """
    is_qwen = type(processor).__name__ in qwen.PROCESSORS
    (qwen.set_pixel_budget if is_qwen else set_image_options)(processor, config)


def from_pretrained(kind: Any, config: ModelConfig, **options: Any) -> Any:
    """Return what one of transformers' `Auto` classes makes of the base's files.

    No code that came with them: it could do anything.

    Raises:
        UserError: If they cannot be loaded.
    """
    source = model_source(config)
    with readable_load_errors(source):
        return kind.from_pretrained(
            source, revision=config.revision, trust_remote_code=False, **options
        )


@contextmanager
def readable_load_errors(source: str) -> Iterator[None]:
    """Turn the errors of the hub, the disk and transformers into one clear line."""
    # The base of all errors of its HTTP library, which is httpx or httpx2.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except UserError:
        raise
    except (OSError, HTTPError, ImportError, ValueError, KeyError) as error:
        hint = f" {NO_NETWORK}" if isinstance(error, OSError | HTTPError) else ""
        raise UserError(
            f"cannot load the base model {source}: {first_line(error)}{hint}"
        ) from error


def is_stored_in_4bit(config: ModelConfig) -> bool:
    """Return whether the base's own files are quantised, whatever `load_in_4bit` says."""
    from transformers import AutoConfig

    return "quantization_config" in from_pretrained(AutoConfig, config).to_dict()


@cache
def hub_answers() -> bool:
    """Return whether the hub can be reached; asked once, since each refusal takes its time."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE_S))
        except Exception:  # the network raises a dozen unrelated types
            return

    # In a thread, because a name server that is silent obeys no timeout of the client.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    return bool(answers)


def check_base(config: ModelConfig) -> None:
    """Find out in seconds whether the base can be had.

    Raises:
        UserError: If its directory is no model, or it is neither on this machine nor can the hub be
            reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    source = model_source(config)
    if Path(source).is_dir():
        return
    file = try_to_load_from_cache(source, "config.json", revision=config.revision)
    if not isinstance(file, str) and not hub_answers():
        raise UserError(
            f"cannot load the base model {source}: {constants.ENDPOINT} does not answer, and the "
            f"hub's local cache has no copy {NO_NETWORK}"
        )
