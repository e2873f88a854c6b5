"""Data sets are fetched from a hub: only what is needed, and once."""

import os
import subprocess
import sys

from medvqa.data.pool import rows_sha256
from tests import copies
from tests.hub_server import serving
from tests.unit.data.test_pubmed_vision import archive_of, load

SCRIPT = """
import logging, sys
from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_pool, rows_sha256
logging.basicConfig(level=logging.INFO)
config = SourceConfig(name="pubmed_vision", split="instruction_tuning", limit=int(sys.argv[1]))
pool = load_pool(config, seed=0)
print(rows_sha256(pool.examples), sum(len(i.read()) for e in pool.examples for i in e.images))
"""


def from_hub(address, home, limit):
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(limit)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **{"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"},
        },
    )
    assert answer.returncode == 0, answer.stderr
    return answer


def test_from_the_hub_only_directories_and_needed_members_are_fetched(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    copies.pubmed_vision(folder, size=400)  # archives of some 2 MB, members of 140 kB
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.zip")}
    local = load(folder, limit=2)
    needed = {f"images_{archive_of(e)}.zip" for e in local.examples}
    with serving("FreedomIntelligence/PubMedVision", folder) as server:
        answer = from_hub(server.address, tmp_path / "home", 2)
        digest, num_bytes = answer.stdout.split()
        assert digest == rows_sha256(local.examples)
        assert int(num_bytes) == sum(len(i.read()) for e in local.examples for i in e.images)
        assert f"in {len(needed)} of 4 archives" in answer.stderr
        sent = dict(server.num_bytes_sent)
        for name, size in sizes.items():
            assert sent.get(name, 0) < (0.6 * size if name in needed else 0.01 * size)
        again = from_hub(server.address, tmp_path / "home", 2)
        assert "will be fetched" in answer.stderr
        assert "nothing is fetched" in again.stderr
        assert sent == server.num_bytes_sent  # all that is needed was kept

        # Where most of an archive is needed, it is fetched as a whole, once.
        answer = from_hub(server.address, tmp_path / "home", 40)
        for name, size in sizes.items():
            more = server.num_bytes_sent[name] - sent.get(name, 0)
            assert size <= more < 1.01 * size
