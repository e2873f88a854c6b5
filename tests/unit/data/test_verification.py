"""Texts that no tokenizer or file takes are bad rows like any other."""

import json

import pytest

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.pool import load_pool
from tests.copies import picture


@pytest.mark.parametrize("key", ["question", "answer", "id"])
def test_half_a_character_is_an_error_or_a_skipped_row(tmp_path, key):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    good = {"question": "q", "answer": "yes", "image": "a.jpg", "id": "good"}
    rows = [good, {**good, "id": "bad", key: "cut \ud83d"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"name": "jsonl", "path": str(tmp_path), "split": "train"}
    with pytest.raises(UserError, match=r"half a character \(U\+D83D") as caught:
        load_pool(SourceConfig(**source), seed=0)
    str(caught.value).encode()
    pool = load_pool(SourceConfig(**source, max_bad_rows=1), seed=0)
    assert ([e.id for e in pool.examples], len(pool.skipped)) == (["good"], 1)
