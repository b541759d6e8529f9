"""The messages that users see most often, as snapshots: tests/data/messages.txt has the full text of each.

After a change of wording, read the difference of the file that this command writes:

    UPDATE_MESSAGES=1 python -m pytest tests/unit/test_messages.py

Every case is a command line, run in a folder with a shard set, a run folder and some damaged files.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from time_limits import seconds

from attributegan import config

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests" / "data" / "messages.txt"
UPDATE = bool(os.environ.get("UPDATE_MESSAGES"))
HEADING = "$ attributegan-"

MODULES = {"train": "launch.train", "submit": "slurm.submit", "doctor": "launch.doctor"}
IN_PROCESS = [
    # configuration
    "train --config missing.yaml",
    "train --config bracket.yaml",
    "train --config twice.yaml",
    "train --config list.yaml",
    "train --config typo.yaml",
    "train --config run.yaml modle.image_size=64",
    "train --config run.yaml train.bacth=8",
    "train --config run.yaml train.split=val",
    "train --config run.yaml train.batch=many",
    "train --config run.yaml train.batch=0",
    "train --config run.yaml train.channels_last=1",
    "train --config run.yaml data.balance=1.5",
    "train --config run.yaml optim.generator_lr=nan",
    "train --config run.yaml loss.adversarial=wgan",
    "train --config run.yaml model.image_size=100",
    "train --config run.yaml augment.policy=[zoom]",
    "train --config run.yaml loss.r1_gamma=0 loss.r2_gamma=1",
    "train --config run.yaml train.grad_accumulation=3",
    "train --config run.yaml train.batch",
    "train --config run.yaml 'train.batch=[8'",
    "train --config both.yaml",
    # shards, as a submission opens them before it starts
    "submit --config run.yaml --cluster cluster.yaml --local data.shards=nowhere",
    "submit --config run.yaml --cluster cluster.yaml --local data.shards=tiles",
    "submit --config run.yaml --cluster cluster.yaml --local data.split=test",
    "submit --config run.yaml --cluster cluster.yaml --local data.attributes=[size]",
    "submit --config run.yaml --cluster cluster.yaml --local model.attributes=published",
    "shard verify nowhere",
    "shard verify damaged",
    "shard pack --images nowhere --labels levels.csv --out new",
    "shard pack --images tiles --labels nowhere.csv --out new",
    "shard pack --images tiles --labels levels.csv --out new",
    "shard pack --images tiles --labels grades.csv --attributes grade.yaml --out new",
    "shard pack --images tiles --labels grades.csv --attributes grade.yaml --val-fraction 0 --out shards",
    "shard pack --images tiles --labels wrong.csv --attributes grade.yaml --out new",
    "shard pack --images tiles --labels grades.csv --attributes one.yaml --out new",
    # launching
    "submit --config run.yaml --cluster nodes.yaml",
    "submit --config run.yaml --cluster time.yaml",
    "submit --config run.yaml --cluster cluster.yaml train.world_size=3",
    "submit --config run.yaml --cluster cluster.yaml train.batch=7",
    "submit --config run.yaml --cluster cluster.yaml run.dir=runs/%j",
    "submit --config run.yaml --cluster cluster.yaml --array sweep.yaml",
    "doctor --seconds 0",
    # models
    "sample nowhere --out new",
    "sample shards --out new",
    "sample broken --out new",
    "sample run --out new --count 0",
    "sample run --out new --precision fp32 --levels size=1",
    "sample run --out new --precision fp32 --levels grade=9",
    "sample run --out new --movie gif",
    "sample run --out tiles",
    "evaluate nowhere --shards shards --out new",
    "evaluate run --shards nowhere --out new",
    "evaluate run --shards shards --out new --count 3",
    "export generator nowhere --out new",
    "explore nowhere",
    "study nowhere.yaml --out new",
    "study suite.yaml --out new",
    "label nowhere --out levels.csv",
    "runs nowhere",
]
AS_PROCESS = [
    "train --config run.yaml run.dir=resumed train.images=24 run.keep=2",  # resumes, past a damaged checkpoint
    "train --config run.yaml run.resume=never",
    "train --config run.yaml train.images=4",
    "train --config run.yaml train.world_size=3",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the commands run."""
    old, path = ROOT / "tests" / "data" / "run_of_522c234", tmp_path_factory.mktemp("messages")
    for source, name in (("shards", "shards"), ("shards", "damaged"), ("tiles", "tiles")):
        shutil.copytree(old / source, path / name)
    for name in ("run", "broken", "resumed"):
        shutil.copytree(old, path / name, ignore=shutil.ignore_patterns("shards", "tiles"))
    tar = path / "damaged" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:600] + b"damage" + tar.read_bytes()[606:])
    (found,) = (path / "broken" / "checkpoints").iterdir()
    (found / "generator_ema.safetensors").write_bytes(b"damage")
    newest = path / "resumed" / "checkpoints" / "images-000000000024"
    shutil.copytree(path / "broken" / "checkpoints" / found.name, newest)

    options = config.load(old / "config.yaml", ["data.shards=shards", "run.dir=run", "train.world_size=0"])
    texts = {
        "run.yaml": config.dump(options),
        "bracket.yaml": "train: {batch: [8}\n",
        "twice.yaml": "train: {batch: 8}\ntrain: {seed: 1}\n",
        "list.yaml": "- train\n",
        "both.yaml": "run: {keep: 2, keep_last: 2}\n",
        "typo.yaml": "data:\n  shuffle_windw: 4\n",
        "cluster.yaml": "nodes: 2\ntime: '01:00:00'\n",
        "nodes.yaml": "node: 2\n",
        "time.yaml": "time: 24:00:00\n",
        "sweep.yaml": "optim.generator_lr: 1e-3\n",
        "suite.yaml": "common: {}\nstudies: {one: {base: papre}}\n",
        "grade.yaml": yaml.safe_dump({"grade": {"levels": ["none", "low", "high"], "not_assessable": 0}}),
        "one.yaml": "grade: [low]\n",
        "levels.csv": "file,grade\n000000.png,1\n",
        "grades.csv": "file,grade\n000000.png,1\n",
        "wrong.csv": "file,grade\n000000.png,7\n999999.png,1\n000001.png,soft\n",
    }
    for name, text in texts.items():
        (path / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("COLUMNS", "140")
        patch.setenv("PATH", str(path))  # without Slurm
        yield path


@contextlib.contextmanager
def fresh_logging() -> Iterator[None]:
    """Without the handlers that other tests of this process have left, as in a new process."""
    loggers = [logging.getLogger(), logging.getLogger("attributegan")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def run_in_process(command: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    name, *arguments = shlex.split(command)
    main = importlib.import_module(MODULES.get(name, f"tools.{name}")).main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), fresh_logging():
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
    return status or 0, output.getvalue()


def run_as_process(command: str) -> tuple[int, str]:
    name, *arguments = shlex.split(command)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", MODULES[name], *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds(240),
    )
    return done.returncode, done.stdout


def with_placeholders(text: str, folder: Path) -> str:
    """``text`` without what differs between machines and runs: folders, names, times and measured numbers."""
    text = text.replace(str(folder.resolve()), "DIR").replace(str(folder), "DIR").replace(str(ROOT), "REPOSITORY")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)
    text = re.sub(r"^\d\d:\d\d:\d\d\b|\b\d+:\d\d:\d\d(?= left)", "TIME", text, flags=re.MULTILINE)
    text = re.sub(r"-?\b\d[\d.,]*(?= (img/s|images/s|tiles/s|MiB|GiB)\b)|(?<=_score )-?[\d.]+", "N", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def entries() -> dict[str, str]:
    """Messages of the snapshot file by their command lines."""
    text = SNAPSHOT.read_text(encoding="utf-8") if SNAPSHOT.exists() else ""
    blocks = [block.partition("\n") for block in re.split(rf"^{re.escape(HEADING)}", text, flags=re.MULTILINE)[1:]]
    return {command: message.strip("\n") + "\n" for command, _, message in blocks}


def check(command: str, status: int, output: str, folder: Path) -> None:
    """Compare with the snapshot, or write it."""
    message = with_placeholders(f"{output}\n[status {status}]", folder)
    saved = entries()
    if UPDATE:
        saved[command] = message
        text = [f"{HEADING}{case}\n{saved[case]}" for case in [*IN_PROCESS, *AS_PROCESS] if case in saved]
        SNAPSHOT.write_text("\n".join(text), encoding="utf-8")
    else:
        assert message == saved.get(command), "reworded? UPDATE_MESSAGES=1 python -m pytest tests/unit/test_messages.py"


@pytest.mark.parametrize("command", IN_PROCESS)
def test_message(command: str, folder: Path) -> None:
    status, output = run_in_process(command)
    assert not (folder / "new").exists(), "a command that fails leaves nothing behind"
    check(command, status, output, folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", AS_PROCESS)
def test_message_of_a_run(command: str, folder: Path) -> None:
    status, output = run_as_process(command)
    check(command, status, output, folder)


def test_snapshot_has_no_other_messages() -> None:
    assert len(IN_PROCESS) >= 40 and list(entries()) == [*IN_PROCESS, *AS_PROCESS]


def test_bad_input_ends_with_a_message_and_no_traceback() -> None:
    for command, message in entries().items():
        assert "Traceback" not in message and len(message) > 30, command
        assert ("[status 0]" in message) == (command == AS_PROCESS[0]), command
