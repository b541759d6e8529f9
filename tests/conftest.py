"""Fixtures that several test files use: small shard sets, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 phantom tiles of 32 px, packed by the command that users type."""
    from tools.shard import main

    folder = tmp_path_factory.mktemp("phantoms") / "shards"
    assert main(["phantom", "--count", "96", "--size", "32", "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained generator; its average is another one."""
    from untrained_run import untrained_run

    folder = tmp_path_factory.mktemp("run")
    untrained_run(folder, 1234)
    return folder


@pytest.fixture
def sampled(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Sample from `run` by the command into a folder of a name, and return it."""
    from tools.sample import main

    def command(name: str, *arguments: str) -> Path:
        assert main([str(run), "--out", str(tmp_path / name), *arguments]) == 0
        return tmp_path / name

    return command
