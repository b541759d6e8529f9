"""Starts a new run from the weights of another run (``train.init``).

Owns finding and reading the source, and logging what is taken. Which weights fit is in weight_matching.py; loading them into an engine,
replicated or sharded, is in distributed/engine.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attributegan import config as config_module
from attributegan.attributes import AttributeSchema
from attributegan.checkpoint import store
from attributegan.checkpoint.weight_matching import Labels, Taken, match
from attributegan.config import ModelConfig
from attributegan.distributed.engine import Read
from attributegan.distributed.runtime import Runtime

log = logging.getLogger("attributegan")

EXPORTED = ("config.json", "model.safetensors")  # files of an exported generator; written in attributegan.export.hub
NETWORKS = ("generator", "generator_ema", "discriminator")


@dataclass(frozen=True)
class Source:
    """Weights to start from, and the model that they belong to.

    Attributes:
        files: weight file of each network that the source has.
        record: where the weights are from: path, images trained, SHA-256 of the manifest (checkpoint) or of the weights (export).
    """

    labels: Labels
    files: dict[str, Path]
    record: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Source:
        """Opens what `find` returned.

        Raises:
            ValueError: a file can't be read or does not describe a model; names the file.
        """
        return _exported(path) if _is_exported(path) else _checkpoint(path)

    def fit(self, network: str, initial: Mapping[str, Tensor], target: Labels) -> Taken | None:
        """Returns the weights to load into one network, see `match`; None if the source lacks it.

        Raises:
            ValueError: the weights can't be read; names the file.
        """
        if network not in self.files:
            return None
        try:
            weights = load_file(self.files[network])
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.files[network]}: can't be read: {error}") from error
        return match(network, weights, self.labels, initial, target)


def load_weights(
    init: str, networks: Mapping[str, tuple[Mapping[str, Tensor], Callable[[Read], None]]], target: Labels, runtime: Runtime
) -> dict[str, Any]:
    """Loads the weights of ``init`` that fit, and logs what is taken and what is not; every process must call it.

    Args:
        init: as in `find`.
        networks: of each of `NETWORKS` the initial state dict, and the function that loads a whole one (`Engine.load_model_state`).
        target: the new model.
        runtime: this process.

    Returns:
        the record of the source.

    Raises:
        ValueError: ``init`` can't be read, or no layer of it fits; names the folder.
    """

    def find_on_rank0() -> list[str]:
        try:
            return [str(find(init)), ""]
        except ValueError as error:
            return ["", str(error)]

    path, problem = runtime.run_on_rank0(find_on_rank0)
    if problem:
        raise ValueError(problem)
    source = runtime.run_and_raise_everywhere(lambda: Source.open(Path(path)))

    def fit_all() -> dict[str, Taken | None]:
        fitted = {network: source.fit(network, initial, target) for network, (initial, _) in networks.items()}
        if not any(taken and taken.layers for taken in fitted.values()):
            raise ValueError(f"train.init: no layer of {path} fits this model; compare model.* with those of its configuration")
        return fitted

    for network, taken in runtime.run_and_raise_everywhere(fit_all).items():
        if taken is not None:
            networks[network][1](taken.tensors.__getitem__)
        log.info("train.init: %s: %s", network, taken or "not in the source; starts as usual")
    log.info("train.init: started from %s", ", ".join(f"{key} {value}" for key, value in source.record.items()))
    return source.record


def find(path: str | Path) -> Path:
    """Finds the weights that a user gives as ``train.init``, and verifies their checksums.

    Args:
        path: run folder (its latest complete checkpoint), checkpoint, or folder of an exported generator.

    Raises:
        ValueError: there is no such folder, or it has no complete checkpoint and no exported generator.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"train.init: {path} is not a folder; give a run folder, a checkpoint or an exported generator")
    try:
        return path if _is_exported(path) else store.resolve(path)
    except ValueError as error:
        raise ValueError(f"train.init: {error}") from error


def _is_exported(path: Path) -> bool:
    return all((path / name).is_file() for name in EXPORTED)


def _checkpoint(path: Path) -> Source:
    where, state = str(path / "state.json"), store.load_state(path)
    config = config_module.from_dict(state["config"], where=where)
    labels = Labels(config.model, AttributeSchema.from_dict(state["schema"], where=where), config.data.attributes)
    files = {network: path / f"{network}.safetensors" for network in NETWORKS}
    return Source(labels, files, _record(path, store.MANIFEST) | {"images": int(state["images"])})


def _exported(path: Path) -> Source:
    """Both the generator and its average start from the exported weights."""
    where = path / "config.json"
    try:
        tree = json.loads(where.read_text(encoding="utf-8"))
        attributes = {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in tree["attributes"]}
        model = config_module.fill(ModelConfig, tree["model"], str(where), section="model")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: is not the description of an exported generator: {error}") from error
    labels = Labels(model, AttributeSchema.from_dict(attributes, where=str(where)))
    return Source(labels, dict.fromkeys(NETWORKS[:2], path / EXPORTED[1]), _record(path, EXPORTED[1]))


def _record(path: Path, hashed: str) -> dict[str, Any]:
    with (path / hashed).open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
