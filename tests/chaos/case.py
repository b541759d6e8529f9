"""A chaos case: draws a fault, a launch mode and a time from a seed, injects the fault, restarts, and compares with an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import faults
import promises
from faults import IMAGES, SAVE_EVERY, STEP, Fault, Scene
from modes import LIMIT_S, Mode, Started, processes
from time_limits import seconds

STARTS = 5  # at most, including the disturbed one
SETTINGS = {  # waiting times, so that a case ends soon
    "attributegan.distributed.watchdog.TIMEOUT_S": 15.0,
    "data_shards.storage.stores.STALL_S": 1.0,
    "data_shards.storage.cache.BACKOFF_S": 0.05,
}


@dataclass(frozen=True)
class Case:
    number: int
    mode: str
    fault: str
    at: int  # images at which to inject the fault; 0: as soon as training processes exist

    def rng(self, seed: int) -> random.Random:
        return random.Random(f"{seed} {self.number}")


@dataclass
class Outcome:
    case: Case
    struck: str = ""
    starts: int = 0
    seconds: float = 0.0
    end: str = ""
    violations: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def draw(seed: int, count: int, modes: list[str], among: Sequence[Fault] = faults.FAULTS) -> list[Case]:
    """Draw ``count`` cases; uses every fault before repeating one, and every mode of a fault."""
    rng = random.Random(seed)
    usable = [fault for fault in among if set(fault.modes) & set(modes)]
    modes_left = {fault.name: _shuffled(rng, [mode for mode in fault.modes if mode in modes]) for fault in usable}
    cases: list[Case] = []
    while len(cases) < count:
        for fault in _shuffled(rng, usable):
            mode = modes_left[fault.name].pop(0)
            modes_left[fault.name].append(mode)
            cases.append(Case(len(cases) + 1, mode, fault.name, _moment(rng, fault)))
    return cases[:count]


def _moment(rng: random.Random, fault: Fault) -> int:
    return rng.choice([at for at in (0, *range(STEP, IMAGES - STEP, STEP)) if at >= fault.at_least])


def _shuffled(rng: random.Random, items: list) -> list:
    return rng.sample(items, len(items))


class Player:
    """Runs cases, each in its own folder, and caches the undisturbed runs.

    Args:
        shards: a small shard set with several shards.
        modes: the modes that are set up, by name.
        own_shm: whether /dev/shm is private to the cases.
    """

    def __init__(self, folder: Path, shards: Path, modes: dict[str, Mode], seed: int, own_shm: bool) -> None:
        self.folder, self.shards, self.modes, self.seed, self.own_shm = folder, shards, modes, seed, own_shm
        self._undisturbed: dict[tuple[str, int], Path] = {}

    def play(self, case: Case) -> Outcome:
        began, outcome = time.monotonic(), Outcome(case)
        fault, mode = faults.BY_NAME[case.fault], self.modes[case.mode]
        undisturbed = self.undisturbed(mode, fault.window)
        scene = Scene(case.rng(self.seed), mode, self.folder / f"case-{case.number}", str(self.shards), case.at)
        shutil.rmtree(scene.folder, ignore_errors=True)
        with scene.undo:
            try:
                self._play(case, fault, scene, outcome)
                self._compare(fault, scene, outcome, undisturbed)
            except Exception as error:
                outcome.violations.append(f"{type(error).__name__}: {error}")
            finally:
                if scene.started:
                    scene.started.send(signal.SIGKILL, processes(scene.started.token))
        outcome.struck, outcome.seconds = scene.struck, round(time.monotonic() - began, 1)
        if not outcome.violations:
            shutil.rmtree(scene.folder, ignore_errors=True)
        return outcome

    def undisturbed(self, mode: Mode, window: int) -> Path:
        """Returns the folder of the undisturbed run, trained on first use."""
        if (mode.name, window) not in self._undisturbed:
            folder = self.folder / f"undisturbed-{mode.name}-{window}".replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
            started = self._start(mode, folder, str(self.shards), (f"data.shuffle_window={window}",), {}, {})
            try:
                assert started.wait(LIMIT_S) == 0, started.output()
            finally:
                started.send(signal.SIGKILL, processes(started.token))
            self._undisturbed[mode.name, window] = folder
        return self._undisturbed[mode.name, window]

    def _start(
        self, mode: Mode, folder: Path, shards: str, options: tuple[str, ...], environment: dict[str, str], inside: dict[str, object]
    ) -> Started:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        (folder / "seen").mkdir(exist_ok=True)
        files = {"seen": str(folder / "seen"), "fired": str(folder / "fired")}
        plan = {**files, "settings": SETTINGS, "strike": "", "pause": 0, "rank": 0, **inside}
        variables = {"CHAOS": json.dumps(plan), "TMPDIR": str(folder / "tmp"), **environment}
        return mode.start(shards, folder / "run", (f"run.save_every={SAVE_EVERY}", "run.keep_last=0", *options), variables, _token(folder))

    def _play(self, case: Case, fault: Fault, scene: Scene, outcome: Outcome) -> None:
        scene.folder.mkdir(parents=True)
        environment = fault.prepare(scene) if fault.prepare else {}
        inside = fault.inside(scene.rng) if fault.inside else {}
        if inside:
            inside |= {"at": case.at, "rank": faults.rank_of(scene.rng, scene.mode.world, inside)}
            scene.struck = ", ".join(f"{key} {value}" for key, value in inside.items() if key != "strike")
        options = (f"data.shuffle_window={fault.window}", *fault.options)

        def start(inside: dict[str, object]) -> Started:
            return self._start(scene.mode, scene.folder, scene.shards, options, environment, inside)

        scene.started, scene.again = start(inside), lambda: start({})
        outcome.starts = 1
        if fault.strike:
            fault.strike(scene)
        status = scene.started.wait(LIMIT_S)
        ended_by_itself = status is not None
        if not ended_by_itself:
            outcome.violations.append(f"hangs: still running {LIMIT_S:.0f} s after the fault")
            scene.started.send(signal.SIGKILL, processes(scene.started.token))
        self._wait_until_no_process(scene, outcome)
        if fault.heal:
            fault.heal(scene)
        outcome.violations += promises.saved_checkpoint_is_valid(scene.run, promises.saved_images(scene.run), scene.struck)
        # A run without a launcher that was killed before its first checkpoint restarts without any message.
        silent = status == -signal.SIGKILL and not promises.saved_images(scene.run)
        triggered = "strike" not in inside or (scene.folder / "fired").exists()
        if not triggered:
            scene.struck += "; not triggered"
        if triggered and fault.ends is not None and case.mode != "Slurm" and (status != 0) != fault.ends:  # Slurm requeues it
            outcome.violations.append(f"the disturbed start exited with status {status}")
        outcome.end = f"finished (status {status})" if status == 0 else f"exited with status {status}"
        while status != 0 and outcome.starts < STARTS:
            scene.started = start({})
            outcome.starts += 1
            status = scene.started.wait(LIMIT_S)
        if status != 0:
            outcome.violations.append(f"does not recover: status {status}")
        self._wait_until_no_process(scene, outcome)
        output = scene.started.output()
        unreported = fault.messages and not any(message in output for message in fault.messages)
        if triggered and not silent and scene.struck and unreported and not (fault.may_differ and outcome.starts == 1):
            outcome.violations.append(f"none of {fault.messages} was printed")
        if "Traceback" in output and (strange := _unexpected(output)):
            outcome.violations.append(f"unexpected error: {strange}")

    def _wait_until_no_process(self, scene: Scene, outcome: Outcome) -> None:
        """Wait until all processes have exited; those of a killed launcher must exit by themselves."""
        until = time.monotonic() + seconds(60)
        while left := processes(scene.started.token):
            if time.monotonic() > until:
                outcome.violations.append(f"{len(left)} processes were left after {seconds(60):.0f} s")
                scene.started.send(signal.SIGKILL, left)
                return
            time.sleep(0.1)

    def _compare(self, fault: Fault, scene: Scene, outcome: Outcome, undisturbed: Path) -> None:
        broken = promises.metrics_once(scene.run, STEP, IMAGES)
        broken += promises.nothing_left(scene.run, scene.folder / "tmp", _token(scene.folder), self.own_shm, scene.readers_killed)
        different = promises.same_end(scene.run, undisturbed / "run") + promises.same_tiles(scene.folder / "seen", undisturbed / "seen")
        reported = fault.may_differ and any(message in scene.started.output() for message in fault.messages)  # type: ignore[union-attr]
        outcome.end += "; " + ("the same bits" if not different else "other tiles, as reported" if reported else "NOT the same")
        outcome.violations += broken + ([] if reported else different)


def _unexpected(output: str) -> str:
    """Returns an error that indicates a bug rather than the fault, or ""."""
    names = "NameError|AttributeError|TypeError|KeyError|IndexError|AssertionError|UnboundLocalError"
    ours = re.sub(r"Exception ignored in.*\n(?:Traceback.*\n)?(?:\s.*\n)*.*\n", "", output)  # in destructors of torch
    found = re.findall(rf"^(?:{names}).*", ours, re.MULTILINE)
    return found[0] if found else ""


def _token(folder: Path) -> str:
    return f"{os.getpid()}-{folder.name}"
