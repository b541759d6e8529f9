"""Commands of ``run.notify``, run by a real shell."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from time_limits import seconds

from launch.notify import Notifier

WRITE = 'echo "$ATTRIBUTEGAN_EVENT|$ATTRIBUTEGAN_RUN|$ATTRIBUTEGAN_IMAGES|$ATTRIBUTEGAN_MESSAGE|$RANK|$STAYS" >> '


def test_the_command_gets_the_event_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("STAYS", "yes")
    monkeypatch.chdir(tmp_path)
    notifier = Notifier(f"sleep 0.2; {WRITE} {tmp_path / 'events'}", Path("run 1"))
    notifier.send("start", 0, "training to 80 images")
    notifier.send("failed", 48, 'two lines:\n  "quoted" $HOME `id`')
    notifier.close()
    run = tmp_path / "run 1"
    assert (tmp_path / "events").read_text().splitlines() == [
        f"start|{run}|0|training to 80 images||yes",
        f'failed|{run}|48|two lines: "quoted" $HOME `id`||yes',
    ]


def test_sending_does_not_wait_for_the_command(tmp_path: Path) -> None:
    command = f"until [ -e {tmp_path / 'sent'} ]; do sleep 0.05; done; touch {tmp_path / 'done'}"
    notifier = Notifier(command, tmp_path, timeout_s=seconds(30))
    notifier.send("start", 0, "")
    assert not (tmp_path / "done").exists()
    (tmp_path / "sent").touch()
    notifier.close()
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("command", "message", "problem"),
    [
        ("echo first; echo no route to host >&2; exit 3", "", "failed with status 3: no route to host"),
        ("exit 4", "", "failed with status 4"),
        ("no-such-command-here", "", "failed with status 127: "),
        ("sleep 60", "", "was killed after 0.5 s"),
        ("sleep 60 & wait", "", "was killed after 0.5 s"),
        ("true", "null \0 character", "can't be run ("),
    ],
)
def test_a_failure_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, command: str, message: str, problem: str) -> None:
    notifier = Notifier(command, tmp_path, timeout_s=0.5 if "sleep" in command else seconds(30))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "attributegan"):
        notifier.send("stopped", 8, message)
        notifier.close()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().endswith("; the run is not affected")
    assert f"run.notify: the command for event stopped {problem}" in record.getMessage()
    assert time.monotonic() - began < seconds(30)


def test_no_command_starts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier("", tmp_path)
    notifier.send("start", 0, "")
    notifier.close()
    assert not caplog.records and not list(tmp_path.iterdir())
