"""Coverage-guided fuzzing of the readers of tars, texts and indexes (libFuzzer through atheris, which is not in any extra).

    pip install atheris
    python tests/helpers/fuzz_guided.py -max_total_time=300 -timeout=20

Stops at the first input that is neither read nor refused with its file name, and saves it as ``crash-…``.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

with atheris.instrument_imports(include=["data_shards", "attributegan", "slurm", "tarfile", "json"]):
    import tarfile

    from attributegan import config
    from attributegan.attributes import AttributeSchema
    from data_shards.format import index, samples, tar_members
    from data_shards.ingest import importers
    from data_shards.ingest.captions import read_tile
    from data_shards.packing.labels import read_labels
    from slurm import cluster_config, sweep

from shards import TWO  # noqa: E402

FOLDER = ROOT / "build" / "guided"
FOLDER.mkdir(parents=True, exist_ok=True)


def tars(data: bytes) -> None:
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar_members.members(tar):
            with contextlib.suppress(ValueError):
                samples.read_levels({member.kind: member}, TWO, "group")


def texts(data: bytes) -> None:
    path = FOLDER / "text"
    path.write_bytes(data)
    for read in (
        config.load,
        cluster_config.load,
        sweep.read,
        AttributeSchema.from_yaml,
        importers.read_captions,
        importers.read_published,
    ):
        with named(path):
            read(path)
    with named(path):
        read_labels([path], TWO)
    read_tile("tile", [data.decode(errors="replace")])


def indexes(data: bytes) -> None:
    path = FOLDER / index.FILE
    path.write_bytes(data)
    with named(path):
        index.read_header(path)


@contextlib.contextmanager
def named(path: Path):
    """Accept a ValueError if it names the file or the problem."""
    try:
        yield
    except ValueError as error:
        assert path.name in str(error) or "attribute" in str(error), f"{error} does not name {path.name}"


READERS = (tars, texts, indexes)


def one(data: bytes) -> None:
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
