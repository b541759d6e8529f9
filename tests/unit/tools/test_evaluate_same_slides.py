"""``--same-slides``: further tiles of the training slides are used by the membership test, and the report says so."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attributegan.attributes import PUBLISHED
from attributegan.evaluation import reference
from data_shards.phantoms import render
from data_shards.storage.cache import Cache
from tools import evaluate
from tools.evaluation import data
from tools.shard import main as shard_main

SIZE = 32


def write_tar(path: Path, slides: Sequence[str], seed: int, per_slide: int = 15) -> None:
    """Phantoms, ``per_slide`` of each slide; the first red pixel is the number of the slide."""
    levels_NA = render.draw_levels(len(slides) * per_slide, seed)
    with tarfile.open(path, "w") as tar:
        for row, level_A in enumerate(levels_NA):
            slide = slides[row // per_slide]
            tile_HWC = render.render(level_A, SIZE, seed, row)
            tile_HWC[0, 0, 0] = int(slide.removeprefix("s"))
            image = io.BytesIO()
            Image.fromarray(tile_HWC).save(image, format="PNG")
            record = {"group": slide, "levels": dict(zip(PUBLISHED.names, level_A.tolist(), strict=True))}
            for suffix, content in (("png", image.getvalue()), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{path.stem}-{row:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def make_set(folder: Path, slides: Sequence[str], held_out: Sequence[str] = (), seed: int = 0) -> Path:
    folder.mkdir()
    write_tar(folder / "train-000000.tar", slides, seed)
    if held_out:
        write_tar(folder / "val-000000.tar", held_out, seed + 1)
    assert shard_main(["index", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets ``real`` and ``more``, with further tiles of some of its training slides, and ``posing`` as generated."""
    folder = tmp_path_factory.mktemp("sets")
    make_set(folder / "real", [f"s{number}" for number in range(10)], ["s20", "s21", "s22"])
    make_set(folder / "more", ["s2", "s3", "s20", "s5", "s7", "s21", "s9"], ["s4"], seed=3)
    make_set(folder / "posing", ["s30", "s31", "s32"], seed=6)
    return folder


def opened(sets: Path, name: str, most: int = 1000) -> reference.Split | None:
    shards, _, train = data.open_split(str(sets / "real"), "train", SIZE, 1000, False, Cache.of(), "--train")
    assert train.slides == tuple(f"s{number}" for number in range(10))
    return data.same_slides(str(sets / name), shards, train, SIZE, most, Cache.of())


def test_tiles_of_training_slides(sets: Path) -> None:
    same = opened(sets, "more")
    assert same is not None and len(same) == 75
    numbers_N = same.read(np.arange(75))[:, 0, 0, 0]
    assert set(numbers_N) == {2, 3, 5, 7, 9}
    np.testing.assert_array_equal(same.group_N, numbers_N)  # groups are numbered as those of the training split
    few = opened(sets, "more", 20)
    assert few is not None and len(few) == 20 and few.identity != same.identity


def test_sets_that_do_not_fit(sets: Path) -> None:
    with pytest.raises(ValueError, match="posing has 0 tiles of the slides of the training split; 50 are needed"):
        opened(sets, "posing")
    with pytest.raises(
        ValueError, match=r"150 of its tiles are in the training split, such as .*train-000000.tar: train-000000-0000; remove"
    ):
        opened(sets, "real")


@pytest.mark.parametrize("given", [True, False])
def test_the_report_names_the_tiles_of_the_membership_test(sets: Path, tmp_path: Path, given: bool) -> None:
    options = ["--count", "40", "--features", "tests.helpers.fake_features:pooled", "--feature-size", "32", "--predictor", "features"]
    options += ["--same-slides", str(sets / "more")] if given else []
    subject = [str(sets / "posing"), "--shards", str(sets / "real"), "--out", str(tmp_path)]
    assert evaluate.main([*subject, "--cache", str(tmp_path / "cache"), *options]) == 0
    row = next(row for row in json.loads((tmp_path / "result.json").read_text())["rows"] if row["kind"] == "generator")
    assert row["memory"]["membership_tiles"] == ("same slides" if given else "held-out split")
    value, low, high = row["memory"]["membership"]
    assert low <= value <= high
    page = (tmp_path / "report.html").read_text()
    assert ("compared only tiles of the same slide" in page) is given and ("used tiles of held-out slides" in page) is not given
    assert "generated | nearest training tile" in page and page.count("and its nearest training tile") == 16
