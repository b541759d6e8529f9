"""The benchmarks of work at the scale of a cohort, at a small size: slides cut by several processes, and parts merged."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import pixels_of

from data_shards.format import index
from data_shards.ingest.tiling import Slide
from data_shards.packing import parts
from tools.bench import main
from tools.benchmarks import cluster, merge

pytest.importorskip("openslide", reason="needs the extra `slides`")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(pixels_of(number, 512)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_slides_are_different_pyramids_of_the_pictures(tmp_path: Path, pictures: Path) -> None:
    paths = cluster.write_slides(tmp_path, 4, pictures)
    assert len({path.read_bytes() for path in paths}) >= 3
    with closing(Slide(paths[0])) as slide:
        assert slide.mpp_XY == (0.5, 0.5) and slide.bounds == (0, 0, 2560, 2048)
        whole = np.asarray(slide.read(512, 0, 512, 512, (512, 512)), float)
        reduced = np.asarray(slide.read(512, 0, 512, 512, (128, 128)), float)
        assert np.abs(whole - pixels_of(1, 512)).mean() < 8  # place 1 is picture 7 % 3
        assert np.abs(reduced - whole.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))).mean() < 8


@pytest.mark.slow
def test_cutting_by_one_process_and_several(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--slides", "2", "--repeats", "1", "--images", str(pictures), "--json", str(tmp_path / "result.json")]
    assert main(["cluster", *options]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["contenders"]) == {"1 process", "2 processes"} and result["facts"]["tiles"] == 40
    assert len(result["ratios"]["2 processes / 1 process"]) == 1
    assert main(["cluster", "--slides", "1"]) == 2 and "--processes: 2 is not between 2 and --slides, 1" in capsys.readouterr().err


def test_synthetic_parts_are_merged_with_all_rows(tmp_path: Path) -> None:
    merge.write_parts(tmp_path / "set", 25, 10)
    header = parts.merge(tmp_path / "set")
    assert [shard.tiles for shard in header.shards] == [10, 10, 5]
    table = index.read_table(tmp_path / "set" / index.FILE)
    assert len(table) == 25 and len(set(table["key"].to_pylist())) == 25


def test_memory_of_a_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_this_process = np.ones(50_000_000)  # 400 MB, which are not the command's
    options = ["merge", "--rows", "20", "--shard-count", "10", "--once", "--json", str(tmp_path / "result.json")]
    assert main(options) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(of_this_process) and 20 < result["contenders"]["20 rows"][0] < 300 and result["facts"]["shards"] == {"20 rows": 2}
    assert main(["merge", "--rows", "5"]) == 2 and "--rows: 5 is below --shard-count, 1000" in capsys.readouterr().err
