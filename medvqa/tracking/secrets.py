"""Texts without the values of keys, tokens, secrets and passwords."""

import re
from collections.abc import Sequence

# What follows such a name is nobody's business. Whole words: max_new_tokens is no secret.
SECRET = re.compile(
    r"""(?i)((?:^|[^a-z])(?:api)?(?:key|token|secret|password)["']?\s*[=:]\s*)"""
    r"""('[^']*'|"[^"]*"|[^,&}\s]+)"""
)
# The user and password of an address.
CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


def masked(overrides: Sequence[str]) -> list[str]:
    """Return the texts without the values of keys, tokens, secrets and passwords."""
    return [CREDENTIALS.sub(r"\1***@", SECRET.sub(r"\1***", override)) for override in overrides]
