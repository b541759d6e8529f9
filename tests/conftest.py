"""Shared fixtures, and the time limits, cache, markers and order of tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import time_limits

ROOT = Path(__file__).parent
LONGEST = (  # slowest files and folders first, so that two workers finish together
    "integration/test_distributed.py",
    "integration/test_training.py",
    "slurm/test_slurm.py",
    "chaos",
    "integration/test_doctor.py",
    "integration/test_explore_page.py",
    "integration",
    "slurm",
    "unit/tools",
)
MARKERS = {  # by file or folder; "slow" starts processes or takes more than 4 s of CPU
    "slow": (
        "integration",
        "slurm",
        "chaos",
        "unit/attributegan/distributed/test_sharding.py",
        "unit/attributegan/distributed/test_watchdog.py",
        "unit/tools/benchmarks/test_reference_model.py",
    ),
    "slurm": ("slurm/test_slurm.py", "slurm/test_slurm_arrays.py"),
    "browser": ("integration/test_explore_page.py", "integration/test_label_page.py", "integration/test_two_afc_page.py"),
    "root": ("slurm/test_slurm.py", "slurm/test_slurm_arrays.py"),
}
SLOW_FIXTURES = {
    "explorer",
    "guarded",
    "imported",
    "out",
    "phantoms",
    "ranks",
    "real",
    "reference_set",
    "report",
    "results",
    "server",
    "states",
}  # of unit tests


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    time_limits.calibrate(workers=config.getoption("numprocesses", None) or 1)


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in the workers
    if reporter:  # pytest's own header is not printed under -q
        reporter.write_line(f"time limits x {time_limits.factor():.1f} (calibration)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set markers by path, scale default time limits, and run the slowest tests first."""
    for item in items:
        for marker, places in MARKERS.items():
            if any(_is_at(item, place) for place in places):
                item.add_marker(marker)
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())) or _parameter(item, "workers"):
            item.add_marker("slow")
        if not item.get_closest_marker("timeout") and config.getoption("timeout", None) is None:
            item.add_marker(pytest.mark.timeout(time_limits.seconds(float(config.getini("timeout")))))
    items.sort(key=lambda item: next((number for number, place in enumerate(LONGEST) if _is_at(item, place)), len(LONGEST)))


def _parameter(item: pytest.Item, name: str) -> object:
    """Returns a parameter of a test, or None."""
    call = getattr(item, "callspec", None)
    return call.params.get(name) if call else None


def _is_at(item: pytest.Item, place: str) -> bool:
    return item.path.is_relative_to(ROOT / place)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for this session and its child processes; the user's is not used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_random_state() -> None:
    """Start each test from the same random state of torch, regardless of the tests before it in this process."""
    import torch

    torch.manual_seed(1_000_003)  # not a seed of any test


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 96 phantom tiles of 32 px, packed with the command."""
    from tools.shard import main

    folder = tmp_path_factory.mktemp("phantoms") / "shards"
    assert main(["phantom", "--count", "96", "--size", "32", "--out", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained generator; its EMA has different weights."""
    from untrained_run import untrained_run

    folder = tmp_path_factory.mktemp("run")
    untrained_run(folder, 1234)
    return folder


@pytest.fixture
def sampled(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that samples from `run` into a folder of the given name and returns the folder."""
    from tools.sample import main

    def command(name: str, *arguments: str) -> Path:
        assert main([str(run), "--out", str(tmp_path / name), "--precision", "fp32", *arguments]) == 0
        return tmp_path / name

    return command
