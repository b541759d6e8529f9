"""Experiment trackers of a run: TensorBoard, Weights & Biases and MLflow.

Owns tensorboard/, wandb/ and mlflow/ in the run folder, and trackers.json with the identifiers that a resumed run continues. Accelerate's
tracker classes talk to wandb and mlflow; TensorBoard is written directly, since a resumed run has to drop later points.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attributegan.utils.files import atomic_write

FILE = "trackers.json"
PROJECT = "attributegan"  # project of wandb, experiment of mlflow, unless their environment variables name another
EVALUATION = "evaluation.jsonl"  # in the run folder, written by `attributegan-evaluate watch`
log = logging.getLogger("attributegan")


class Tracker(Protocol):
    """Receives what a run logs; ``images`` is the number of images seen."""

    def scalars(self, images: int, values: Mapping[str, float]) -> None: ...

    def image(self, images: int, name: str, image_HWC: np.ndarray, path: Path) -> None:
        """Log a uint8 image, which is also in the PNG file ``path``."""

    def close(self) -> None: ...


def require_installed(names: tuple[str, ...]) -> None:
    """Check that the packages of the trackers are installed, without importing them.

    Raises:
        ValueError: names the package and the extra that has it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"run.trackers: {name} is not installed; pip install 'attributegan[trackers]', or remove it from run.trackers")


class Trackers:
    """All trackers of a run. A tracker that fails is turned off with a warning; the run continues.

    Args:
        names: values of ``run.trackers``; empty on all ranks but 0.
        folder: the run folder.
    """

    def __init__(self, names: tuple[str, ...], folder: Path) -> None:
        self.names, self.folder = names, folder
        self.active: dict[str, Tracker] = {}
        self.evaluated = 0  # lines of evaluation.jsonl that have been logged

    def start(self, images: int, options: Mapping[str, Any]) -> None:
        """Open the trackers.

        Args:
            images: images seen before this start.
            options: all options by name, such as ``train.batch``.
        """
        self.evaluated = len(_lines(self.folder / EVALUATION)) if self.names else 0
        opened: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: _TensorBoard(self.folder, images),
            "wandb": lambda: _WandB(self.folder, options),
            "mlflow": lambda: _MLflow(self.folder, options),
        }
        for name in self.names:
            try:
                self.active[name] = opened[name]()
            except Exception as error:  # of libraries and servers: any type
                _warn(name, error)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.scalars(images, values))
        self.evaluations()

    def image(self, images: int, name: str, image_HWC: np.ndarray, path: Path) -> None:
        self._each(lambda tracker: tracker.image(images, name, image_HWC, path))

    def evaluations(self) -> None:
        """Log the evaluations that the background process has finished since the last call.

        TensorBoard is left out: the background process writes its scalars itself.
        """
        if not set(self.active) - {"tensorboard"}:
            return
        lines = _lines(self.folder / EVALUATION)
        for line in lines[self.evaluated :]:
            if isinstance(images := line.get("images"), int) and "error" not in line:
                values = {f"evaluation/{name}": value for name, value in line.items() if name != "images" and _is_number(value)}
                self._each(partial(_log, images=images, values=values), but="tensorboard")
        self.evaluated = len(lines)

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self.active.clear()

    def _each(self, call: Callable[[Tracker], None], but: str = "") -> None:
        for name, tracker in list(self.active.items()):
            if name == but:
                continue
            try:
                call(tracker)
            except Exception as error:  # of libraries and servers: any type
                del self.active[name]
                _warn(name, error)


def _log(tracker: Tracker, images: int, values: Mapping[str, float]) -> None:
    tracker.scalars(images, values)


class _TensorBoard:
    def __init__(self, folder: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, images)

    def image(self, images: int, name: str, image_HWC: np.ndarray, path: Path) -> None:
        self.board.add_image(name, image_HWC, images, dataformats="HWC")

    def close(self) -> None:
        self.board.close()


class _WandB:
    """Logs against ``images`` instead of wandb's step, which ignores points that come late, such as evaluations."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        from accelerate.tracking import WandBTracker

        run_id = _identifier(folder, "wandb") or uuid.uuid4().hex[:16]
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.tracker = WandBTracker(project, dir=os.environ.get("WANDB_DIR", str(folder)), id=run_id, name=folder.name, resume="allow")
        self.tracker.start()
        _keep_identifier(folder, "wandb", run_id)
        self.tracker.store_init_configuration(dict(options))
        self.tracker.tracker.define_metric("images")
        self.tracker.tracker.define_metric("*", step_metric="images")

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        self.tracker.log({"images": images, **values})

    def image(self, images: int, name: str, image_HWC: np.ndarray, path: Path) -> None:
        import wandb

        self.tracker.log({"images": images, name: wandb.Image(image_HWC)})

    def close(self) -> None:
        self.tracker.finish()


class _MLflow:
    """Logs to ``MLFLOW_TRACKING_URI``, by default the file store ``mlflow`` in the run folder."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ["MLFLOW_TRACKING_URI"] = (folder / "mlflow").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from accelerate.tracking import MLflowTracker

        run_id = _identifier(folder, "mlflow")
        self.tracker = MLflowTracker(PROJECT, run_id=run_id, run_name=folder.name)
        self.tracker.main_process_only = False  # this is rank 0, and the process group may have ended when the last evaluation is logged
        self.tracker.start()
        if run_id is None:
            _keep_identifier(folder, "mlflow", self.tracker.tracker.info.run_id)
            self.tracker.store_init_configuration(dict(options))  # mlflow refuses to change them later

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        self.tracker.log(dict(values), step=images)

    def image(self, images: int, name: str, image_HWC: np.ndarray, path: Path) -> None:
        self.tracker.log_artifact(str(path), "grids")

    def close(self) -> None:
        self.tracker.finish()


def _identifier(folder: Path, name: str) -> str | None:
    """Returns the identifier of the run in a tracker, None for a new run."""
    try:
        tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = tree.get(name) if isinstance(tree, dict) else None
    return found if isinstance(found, str) else None


def _keep_identifier(folder: Path, name: str, value: str) -> None:
    known = {other: _identifier(folder, other) for other in ("wandb", "mlflow")} | {name: value}
    with atomic_write(folder / FILE, fsync=False) as stream:
        stream.write((json.dumps({key: each for key, each in known.items() if each}) + "\n").encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a file of JSON objects; none if there is no such file."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:  # being written
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warn(name: str, error: Exception) -> None:
    log.warning("run.trackers: %s failed and is turned off until the next start: %s: %s", name, type(error).__name__, error)
