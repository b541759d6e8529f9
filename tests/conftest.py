"""Fixtures that several test files use: small shard sets, made once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 phantom tiles of 32 px, packed by the command that users type."""
    from tools.shard import main

    folder = tmp_path_factory.mktemp("phantoms") / "shards"
    assert main(["phantom", "--count", "96", "--size", "32", "--out", str(folder), "--workers", "1"]) == 0
    return folder
