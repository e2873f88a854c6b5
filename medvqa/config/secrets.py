"""Texts, configs and logs without the values of keys, tokens, secrets and passwords."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MASK = "***"
# Whole words: max_new_tokens is no secret, and `key=value` is an example in our messages.
NAME = r"(?:api)?(?:key|token|secret|password|passwd|credentials?)"
NAMED = re.compile(rf"(?i)(?:^|[^a-z]){NAME}$")
# A colon hides what follows it in YAML and JSON, not in a sentence about a key.
SECRET = re.compile(
    rf"""(?i)((?:^|[^a-z]){NAME}["']?\s*=\s*|(?:^|[{{,"'_.])\s*{NAME}["']?\s*:\s*)"""
    r"""(?!value\b|'a=b')('[^']*'|"[^"]*"|[^,&}\s]+)"""
)
# The user and password of an address.
CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
# The forms in which Hugging Face, OpenAI, GitHub and Amazon hand out keys.
ISSUED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"
)
SHORTEST = 8  # characters of an environment variable that is looked for


def masked_text(text: str) -> str:
    """Return the text with each secret replaced, also the values of such environment variables."""
    for name, value in os.environ.items():
        if NAMED.search(name) and len(value) >= SHORTEST and not value.startswith("/"):
            text = text.replace(value, MASK)
    text = SECRET.sub(rf"\1{MASK}", text)
    return ISSUED.sub(MASK, CREDENTIALS.sub(rf"\1{MASK}@", text))


def masked(texts: Sequence[str]) -> list[str]:
    """Return the command's arguments or overrides with each secret replaced."""
    return [masked_text(text) for text in texts]


def masked_values(value: Any) -> Any:
    """Return plain values, such as a config, with each secret replaced at any depth."""
    if isinstance(value, Mapping):
        return {
            name: MASK
            if isinstance(inner, str) and NAMED.search(str(name))
            else masked_values(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked_values(inner) for inner in value]
    return masked_text(value) if isinstance(value, str) else value


class MaskingFormatter(logging.Formatter):
    """Formats a record, its traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of the record."""
        return masked_text(super().format(record))


@contextmanager
def masked_log(file: Path, *, verbose: bool) -> Iterator[None]:
    """Send the log without secrets to a file, and to stdout if `verbose`."""
    root, logger = logging.getLogger(), logging.getLogger("medvqa")
    handlers: list[logging.Handler] = [logging.FileHandler(file, delay=True, encoding="utf-8")]
    handlers[0].setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if verbose:
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setFormatter(MaskingFormatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
