"""Tiles without any label as extra training tiles: packed from a second table, and trained on with every loss term."""

import json
import math
from pathlib import Path

import pytest
from runs import CONTROL, TINY, tensors, write_config
from shards import TWO_YAML, write_csv, write_tiles

from data_shards.loader.shard_set import ShardSet


@pytest.mark.parametrize("changes", [CONTROL[:-1], ["loss.contrastive_over=label", "data.balance=0.5"]], ids=["controlled", "contrastive"])
def test_unlabelled_tiles_train_beside_labelled_ones(tmp_path: Path, changes: list[str]) -> None:
    from launch.train import main as train
    from tools.shard import main as shard

    labelled = write_tiles(tmp_path, range(48), size=32)
    rows = [line.split(",") for line in labelled.read_text().splitlines()]
    write_csv(labelled, rows[0], rows[1:17])
    unlabelled = write_csv(tmp_path / "unlabelled.csv", rows[0], [[*row[:2], -1, -1] for row in rows[17:]])
    (tmp_path / "attributes.yaml").write_text(TWO_YAML)
    tables = ["--labels", str(labelled), "--labels", str(unlabelled), "--attributes", str(tmp_path / "attributes.yaml")]
    assert shard(["pack", "--images", str(tmp_path / "images"), *tables, "--out", str(tmp_path / "set"), "--val-fraction", "0"]) == 0
    levels_NA = ShardSet.open(tmp_path / "set").levels_NA
    assert (levels_NA == -1).all(axis=1).sum() == 32 and (levels_NA >= 0).all(axis=1).sum() == 16

    run = tmp_path / "run"
    options = [*changes, f"data.shards={tmp_path / 'set'}", f"run.dir={run}", "train.images=24", "data.workers=0", "train.world_size=1"]
    assert train(["--config", str(write_config(run)), *options]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 24 // TINY["run"]["log_every"]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert not any(value for name, value in lines[-1].items() if name.startswith("skipped/"))
    assert all(tensor.isfinite().all() for tensor in tensors(run).values())
