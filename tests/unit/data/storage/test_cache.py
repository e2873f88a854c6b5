"""What is remembered between runs: once per key, and nothing without one."""

from medvqa.data.storage.cache import Cache, remembered


def test_a_value_is_computed_once_per_key_and_each_time_without_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVQA_CACHE", str(tmp_path))
    computed = []

    def compute():
        computed.append(1)
        return b"rows"

    assert [remembered("rows of a.json", compute) for _ in range(3)] == [b"rows"] * 3
    assert len(computed) == 1
    assert [remembered(None, compute) for _ in range(2)] == [b"rows"] * 2
    assert len(computed) == 3
    with Cache(tmp_path) as cache:
        assert cache.get("rows of a.json") == b"rows"
        assert cache.get("rows of b.json") is None


def test_a_place_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with Cache(tmp_path / "file") as cache:
        cache.keep("key", b"value")
        assert cache.get("key") is None
    assert "no cache of hashes" in caplog.text
