"""Two launches on two nodes are bit-identical to two processes on one."""

from pathlib import Path

import pytest
from nodes import LOOPBACK, Node, launch, two_nodes
from runs import SCRIPT, differing, output, tensors, train, write_config
from time_limits import seconds

SHORT = ("train.images=32", "run.save_every=1000")


@pytest.fixture(scope="module")
def on_one_node(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one-node") / "run"
    train(shards, run, *SHORT, processes=2)
    return run


def train_on(nodes: tuple[Node, Node], mode: str, shards: Path, run: Path) -> None:
    command = [SCRIPT, "--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "train.world_size=2", *SHORT]
    started = launch(nodes, mode, run, command)
    for rank, process in enumerate(started):
        assert process.wait(timeout=seconds(240)) == 0, output(run.with_name(f"run-{rank}"))


@pytest.mark.parametrize("mode", ["multinode_zero1", "multinode_zero2"])
def test_two_launches_are_the_same_run(mode: str, shards: Path, on_one_node: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_on((LOOPBACK, LOOPBACK), mode, shards, run)
    assert differing(tensors(on_one_node), tensors(run)) == []


@pytest.mark.root
@pytest.mark.parametrize("mode", ["multinode_ddp", "multinode_zero3"])
def test_two_machines_with_a_cable_are_the_same_run(mode: str, shards: Path, on_one_node: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with two_nodes() as nodes:
        train_on(nodes, mode, shards, run)
    assert differing(tensors(on_one_node), tensors(run)) == []
