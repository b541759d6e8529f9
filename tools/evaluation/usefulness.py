"""``attributegan-evaluate usefulness``: does adding generated tiles to real ones train a better predictor of attribute levels?

Owns the command: options, tiles and files. Numbers are computed in `attributegan.evaluation.usefulness`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan import cli
from tools import options as options_module
from tools.evaluation.options import EvaluationSettings, add_shared

if TYPE_CHECKING:  # slow to import; --help must be fast
    import numpy as np

    from attributegan.checkpoint.loading import Loaded
    from attributegan.distributed.process_group import Processes
    from attributegan.evaluation.reference import Split
    from attributegan.evaluation.usefulness import Study
    from tools.evaluation.data import Data

RESULT, PAGE = "usefulness.json", "usefulness.html"
EXAMPLES = """\
  attributegan-evaluate usefulness runs/first --shards shards --out report
  attributegan-evaluate usefulness stylegan-tiles --shards shards --out report --seeds 10      tiles of any model, with a CSV of levels
  attributegan-evaluate usefulness runs/first --shards shards --out report --predictor cnn     a CNN trained from scratch, slower"""


@dataclass(frozen=True)
class UsefulnessSettings:
    """Which generated tiles to add to which real ones, and how. Fields are the options of the command.

    Raises:
        ValueError: names the option that is wrong.
    """

    model: str | Path  # run folder, checkpoint or tiles
    out: Path
    shards: str
    shards_cache: str = ""
    shards_cache_gb: float = EvaluationSettings.shards_cache_gb
    assessable_only: bool = False
    train: str = EvaluationSettings.train
    held_out: str = EvaluationSettings.held_out
    max_real: int = EvaluationSettings.max_real
    count: int | None = None  # generated tiles; None for as many as real training tiles, or all that exist
    shares: tuple[int, ...] = (10, 25, 50)  # of the real tiles, percent; 100 is always there
    seeds: int = 5
    features: str = EvaluationSettings.features
    feature_size: int | None = None
    predictor: str = "features"
    predictor_steps: int = EvaluationSettings.predictor_steps
    seed: int = 0
    batch: int = EvaluationSettings.batch
    precision: str = "auto"
    no_ema: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        options_module.require_at_least(self, count=16, max_real=32, batch=1, predictor_steps=1, seeds=2)
        if wrong := [share for share in self.shares if not 0 < share < 100]:
            raise ValueError(f"--shares: {wrong[0]} must be above 0 and below 100 (percent)")

    def of_evaluation(self) -> EvaluationSettings:
        """Returns these settings as those of an evaluation, to open the real tiles."""
        return options_module.settings_of(EvaluationSettings, argparse.Namespace(**vars(self)), count=EvaluationSettings.count)


def add(commands: Any) -> None:
    """Add the command to those of ``attributegan-evaluate``."""
    default = UsefulnessSettings
    parser = cli.command(
        commands,
        "usefulness",
        "train predictors with and without generated tiles",
        "Train predictors of attribute levels on real tiles, on generated ones and on both, and test them on real held-out tiles.\n"
        f"Writes {PAGE} and {RESULT} to DIR. Finished predictors are cached, so an interrupted command resumes.",
        EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="RUN|CHECKPOINT|TILES", help="model that generates the tiles, or generated tiles, as for `attributegan-evaluate`"
    )
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="output folder; created if it does not exist")
    add_shared(parser)
    parser.add_argument(
        "--count",
        metavar="N",
        type=int,
        help="number of generated tiles (default: for a model, that of the real training tiles; else all, up to --max-real)",
    )
    parser.add_argument(
        "--shares",
        metavar="PERCENT",
        type=int,
        nargs="+",
        default=list(default.shares),
        help="percentages of the real training tiles to train with, besides 100 (default: 10 25 50)",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        default=default.seeds,
        help="repetitions of each training, with different random tiles (default: %(default)s)",
    )
    parser.add_argument(
        "--predictor",
        choices=("features", "cnn"),
        default=default.predictor,
        help="a head on the features, or a CNN trained from scratch (default: %(default)s)",
    )
    parser.add_argument(
        "--predictor-steps",
        metavar="N",
        type=int,
        default=default.predictor_steps,
        help="training steps of a CNN (default: %(default)s)",
    )
    parser.set_defaults(work=options_module.with_settings(usefulness, UsefulnessSettings))


def usefulness(settings: UsefulnessSettings) -> dict[str, Any] | None:
    """Run the study and write the page; every process of a launch calls this.

    Returns:
        The contents of usefulness.json on the main process, None on others.

    Raises:
        ValueError: a model, tile set, shard set or feature network that can't be used, or that don't fit each other.
    """
    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.checkpoint.store import resolve
    from attributegan.distributed.process_group import Processes
    from attributegan.evaluation.reference import FeatureCache
    from attributegan.utils.files import require_writable
    from attributegan.utils.html_page import require_jinja2
    from data_shards.storage.cache import Cache
    from tools.evaluation import data
    from tools.evaluation.tiles import is_tiles, open_tiles

    require_jinja2()
    require_writable(settings.out, "--out")
    require_writable(FeatureCache.at(settings.cache).folder, "--cache")
    subject: Loaded | Split
    if is_tiles(settings.model):
        source = open_tiles(settings.model, Cache.of(settings.shards_cache, settings.shards_cache_gb))
        opened = data.open_data(settings.of_evaluation(), source.image_size)
        subject = source.open(opened.schema, settings.count or settings.max_real, source.image_size)
    else:
        settings = dataclasses.replace(settings, model=resolve(settings.model))  # a run may write newer checkpoints meanwhile
        subject = load_for_sampling(settings.model, ema=not settings.no_ema)
        opened = data.open_data(settings.of_evaluation(), subject.config.model.image_size)
        data.check_model(str(settings.model), subject, opened)
    processes = Processes()
    try:
        return _run(settings, opened, subject, processes)
    finally:
        processes.shutdown()


def _run(settings: UsefulnessSettings, opened: Data, subject: Loaded | Split, processes: Processes) -> dict[str, Any] | None:
    from attributegan.checkpoint.loading import Loaded
    from attributegan.evaluation import usefulness as numerics
    from attributegan.evaluation.reference import FeatureCache
    from tools.evaluation import feature_networks
    from tools.progress import StageProgress

    numerics.scored_levels(opened.schema, opened.train.levels_NA, opened.held_out.levels_NA)  # an error before anything is computed
    trained_on = {str(settings.model): feature_networks.trained_on(subject.config)} if isinstance(subject, Loaded) else {}
    network = feature_networks.load(feature_networks.choose(settings.features, trained_on), settings.feature_size).to(processes.device)
    generated: tuple[Split, Split | None]
    if isinstance(subject, Loaded):
        precision = processes.broadcast_object(options_module.resolve_precision(settings.precision) if processes.is_main else "")
        subject.generator.to(processes.device)
        generated = generated_splits(settings, subject, opened, precision)
    else:
        generated = subject, None
    cache, progress = FeatureCache.at(settings.cache), StageProgress(processes.is_main)
    named = {
        "training tiles": opened.train,
        "held-out tiles": opened.held_out,
        "generated tiles": generated[0],
        "balanced generated tiles": generated[1],
    }
    pools = [None if split is None else numerics.pool_of(split, name, network, processes, cache, progress) for name, split in named.items()]
    if not processes.is_main:
        return None
    real, held_out, drawn, balanced = pools
    assert real and held_out and drawn
    study = numerics.Study(
        opened.schema,
        real,
        held_out,
        drawn,
        balanced,
        network.identity,
        cache,
        settings.predictor,
        settings.predictor_steps,
        processes.device,
    )
    rows = numerics.training_sets(len(real), len(drawn), sorted({*settings.shares, 100}))
    found = numerics.run(study, rows, settings.seeds, progress=progress)
    progress.close()
    result = _summary(settings, opened, study, found, isinstance(subject, Loaded))
    _write(settings.out, result)
    return result


def generated_splits(settings: UsefulnessSettings, loaded: Loaded, opened: Data, precision: str) -> tuple[Split, Split]:
    """Returns tiles that the model generates when they are read: with levels drawn as in the real tiles, and with balanced ones.

    Balanced levels are drawn uniformly for each attribute by itself, so that rare levels are as frequent as others.
    """
    from attributegan.sampling import latents

    count = settings.count or len(opened.train)
    drawn_NA = latents.levels_like(opened.train.levels_NA, settings.seed, range(count)).numpy()
    balanced_NA = latents.levels_for(loaded.schema, settings.seed, range(count, 2 * count)).numpy()
    return generated_split(settings, loaded, drawn_NA, 0, precision), generated_split(settings, loaded, balanced_NA, count, precision)


def generated_split(settings: UsefulnessSettings, loaded: Loaded, levels_NA: np.ndarray, first: int, precision: str) -> Split:
    """Returns tiles with these levels and the latents from number ``first`` on."""
    import hashlib

    import numpy as np
    import torch

    from attributegan.checkpoint.store import MANIFEST
    from attributegan.evaluation.reference import Split
    from attributegan.sampling import generate, latents

    def read(rows_N: np.ndarray) -> np.ndarray:
        latents_BL = latents.latents_for(settings.seed, (first + rows_N).tolist(), loaded.config.model.latent_dim)
        return generate.generate(loaded.generator, latents_BL, torch.from_numpy(levels_NA[rows_N]), settings.batch, precision)

    digest = hashlib.sha256(Path(settings.model, MANIFEST).read_bytes() + np.ascontiguousarray(levels_NA).tobytes())
    digest.update(f"{settings.no_ema}/{settings.seed}/{first}/{settings.batch}/{precision}".encode())
    return Split(levels_NA, np.arange(len(levels_NA)), read, digest.hexdigest())


def _summary(settings: UsefulnessSettings, opened: Data, study: Study, found: dict[str, Any], is_model: bool) -> dict[str, Any]:
    import numpy as np

    from attributegan.evaluation.usefulness import FORMAT
    from tools.evaluation.run import names_of

    return {
        "format": FORMAT,
        "model": {"name": names_of([settings.model])[0], "is_model": is_model, "generated": len(study.generated)},
        "features": study.identity,
        "data": {
            "shards": opened.location,
            "identity": [study.real.split.identity, study.held_out.split.identity],
            "splits": [settings.train, settings.held_out],
            "train_tiles": len(study.real),
            "held_out_tiles": len(study.held_out),
            "held_out_groups": len(np.unique(study.held_out.split.group_N)),
            "groups_apart": opened.groups_apart,
            "left_out": [name for name in study.schema.names if name not in found["attributes"]],
        },
        "settings": {
            "shares": sorted({*settings.shares, 100}),
            "seeds": settings.seeds,
            "seed": settings.seed,
            "predictor": settings.predictor,
            "predictor_steps": settings.predictor_steps if settings.predictor == "cnn" else None,
            "assessable_only": settings.assessable_only,
        },
        **found,
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    """Write the page, then usefulness.json: its presence means that the page is complete."""
    from attributegan.utils.files import atomic_write
    from tools.evaluation import usefulness_page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: can't create the folder: {error}") from error
    with atomic_write(out / PAGE) as stream:
        stream.write(usefulness_page.page(result).encode())
    with atomic_write(out / RESULT) as stream:
        stream.write(json.dumps(result, indent=1, allow_nan=False).encode())
    print("\n".join(usefulness_page.sentences(result)))
    print(f"\n{out / PAGE}")
