"""Pack a finished grid as the example of `medvqa report --example`: what a report reads, no more.

python train.py -m curriculum=open_first,mixed seed=1,2,3 data.evaluation.test.limit=120 \
    training.max_steps=160 tracking=disabled
python -m tools.pack_example multirun/GRID
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import medvqa
from medvqa.report.report import ARCHIVE

RECORDS = ("sweep.json", "*/run.json", "*/status.json", "*/metrics.jsonl", "*/contamination.json",
           "*/evaluation/*/*/*")  # fmt: skip


def pack(grid: Path, target: Path) -> None:
    """Write the archive; paths of this machine become relative ones."""
    paths = sorted({path for pattern in RECORDS for path in grid.glob(pattern) if path.is_file()})
    checkout = str(Path(medvqa.__file__).parents[1])
    places = {f"{grid.resolve()}/": "", f"{checkout}/": "", str(Path.cwd()): "."}
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in paths:
            text = path.read_text(encoding="utf-8")
            for place, replacement in places.items():
                text = text.replace(json.dumps(place)[1:-1], replacement)
            data = text.encode()
            member = tarfile.TarInfo(path.relative_to(grid).as_posix())  # owned by nobody, no date
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def main() -> None:
    """Pack the grid that is named on the command line."""
    parser = argparse.ArgumentParser("python -m tools.pack_example", description=pack.__doc__)
    parser.add_argument("grid", type=Path, help="a finished grid below multirun/")
    pack(parser.parse_args().grid, ARCHIVE)


if __name__ == "__main__":
    main()
