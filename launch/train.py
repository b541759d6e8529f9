"""Put a training run together: configuration, shards, processes, networks; the target of ``accelerate launch``."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan import cli, config, errors
from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.config import Config
from attributegan.run_dir import resolved_config, status

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from attributegan.distributed.runtime import Runtime
    from attributegan.training.loop import StopSignal
    from data_shards.loader.shard_set import ShardSet
    from data_shards.sampler.global_order import GlobalShuffle
    from data_shards.sampler.windowed_order import WindowedShuffle
    from launch.evaluator import BackgroundEvaluator

EXAMPLES = """\
  attributegan-train --config small data.shards=shards run.dir=runs/first train.images=40000
  accelerate launch --config_file "$(attributegan-presets --path accelerate/cpu)" --num_processes 2 \\
      -m attributegan train --config small data.shards=shards run.dir=runs/first
Started again with the same run.dir, a run goes on from its newest checkpoint. Ctrl-C or SIGTERM saves first."""

FINISH_S = 5.0  # for a checkpoint that is being written when an error ends the run; a process whose part is missing may be gone
TELL_S = 30.0  # to let the other processes know why this one ends
log = logging.getLogger("attributegan")

REMOTE_WINDOW = 8  # shards; fully random order would need all of a remote set at once


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    cli.restrict_umask()
    stopped_by = 0

    def work() -> None:
        nonlocal stopped_by
        stopped_by = run(_settings(arguments))

    return cli.exit_status(work) or (128 + stopped_by if stopped_by else 0)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Train an AttributeGAN on a set of shards.", EXAMPLES)
    parser.add_argument(
        "--config", required=True, metavar="NAME|FILE", help="a preset (attributegan-presets lists them), such as small, or a YAML file"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file")
    return parser


def _settings(arguments: argparse.Namespace) -> Config:
    """The configuration; when it can't be read here, the processes for which it can must not wait for this one."""
    try:
        return config.load(arguments.config, arguments.overrides)
    except ValueError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from attributegan.distributed.rendezvous import wait_for_all_ranks

            wait_for_all_ranks(TELL_S, str(error))
        raise


def run(settings: Config) -> int:
    """Train as ``settings`` say.

    Returns:
        the number of the signal that stopped the run early, 0 when it reached its end.

    Raises:
        ValueError: bad settings or data, or a run folder in use; before anything is computed.
        TransientError: a store or a process that may answer another time.
        PermanentError: an error that starting again would not mend.
    """
    from torch.distributed.elastic.multiprocessing.errors import record

    from attributegan.distributed.runtime import Runtime
    from attributegan.distributed.watchdog import Watchdog
    from attributegan.run_dir.reporter import init_logging
    from attributegan.training.loop import StopSignal
    from launch.evaluator import BackgroundEvaluator

    runtime = Runtime(settings)
    settings = runtime.config  # train.precision=auto is decided
    evaluator, code = BackgroundEvaluator(settings), None
    try:

        def opened() -> tuple[ShardSet, AttributeSchema]:
            shards = open_shards(settings)
            return shards, model_schema(settings, shards.schema)

        with ExitStack() as held:
            with Watchdog(runtime.rank, runtime.world, f"{runtime.launch_id} start", lambda: False):
                shards, schema = runtime.run_and_raise_everywhere(opened)
                settings = _to_write_down(settings)  # the set is open, and the rest needs no address
                sharding = {f"sharding of the {name}": str(how) for name, how in runtime.sharding.items()}
                runtime.check_same(**facts(settings, shards), **sharding)
                held.enter_context(_locked(settings, runtime))
            stop = held.enter_context(StopSignal())
            init_logging(Path(settings.run.dir), runtime.is_main)
            runtime.log_precision()
            # Launchers give each process a file for its error, and take the first one that is written for the cause.
            code = record(_train)(settings, shards, schema, runtime, stop, evaluator)
            assert code is not None
            return code
    finally:
        runtime.shutdown()
        evaluator.end(wait=code == 0)


def _to_write_down(settings: Config) -> Config:
    """``settings`` as the run folder has them and processes compare them: the address of the shards without what may be a secret."""
    from data_shards.storage import stores

    return replace(settings, data=replace(settings.data, shards=stores.redact(settings.data.shards)))


def facts(settings: Config, shards: ShardSet) -> dict[str, str]:
    """What all processes of a run must have in common: options, code, data, and the versions that decide on numbers."""
    import torch

    from attributegan.run_dir import code_digest

    options = {f"{section}.{key}": str(value) for section, tree in settings.to_dict().items() for key, value in tree.items()}
    return options | {"code": code_digest.code_digest(), "data.shards (index)": shards.fingerprint, "torch": torch.__version__}


def _train(
    settings: Config, shards: ShardSet, schema: AttributeSchema, runtime: Runtime, stop: StopSignal, evaluator: BackgroundEvaluator
) -> int:
    from attributegan.distributed.watchdog import Watchdog
    from attributegan.training.loop import train
    from attributegan.training.trainer import Batch, Trainer
    from data_shards.loader.loader import batches
    from data_shards.packing import level_counts

    folder = Path(settings.run.dir)

    def tell(**changes: object) -> None:
        if runtime.is_main:
            status.update(folder, **changes)

    def open_data(start: int) -> Generator[Batch, None, None]:
        return batches(
            shards,
            _order(settings, shards),
            start=start,
            batch=settings.train.batch,
            micro_batches=settings.train.grad_accumulation,
            rank=runtime.rank,
            world=runtime.world,
            workers=settings.data.workers,
            flips=settings.augment.flips,
            crop=settings.augment.crop,
            image_size=settings.model.image_size,
            pin_memory=runtime.device.type == "cuda",
        )

    trainer, began, before = None, 0, status.read(folder) if runtime.is_main else None
    with Watchdog(runtime.rank, runtime.world, runtime.launch_id, lambda: stop.signal != 0):
        try:
            tell(state="running", total=settings.train.images, processes=runtime.world, images_per_second=0.0, **status.process_location())
            trainer = Trainer(settings, schema, runtime)
            trainer.resume()
            began = trainer.images
            if began >= settings.train.images + settings.train.batch:
                raise ValueError(
                    f"train.images: {settings.train.images:,} is below the {began:,} that {settings.run.dir} has seen; "
                    "ask for more, or for what it was asked before"
                )
            if began and before and before.shards not in ("", shards.fingerprint):
                log.warning(
                    "data.shards: %s was packed anew: from %s images on, tiles are those of another set", shards.location, f"{began:,}"
                )
            tell(images=began, error="", shards=shards.fingerprint)
            if runtime.is_main:
                resolved_config.write(folder, config.dump(settings))
                evaluator.start()  # it reads there when the run is over
            for line in trainer.memory_report():
                log.info(line)
            log.info("%s tiles, %s processes on %s", f"{len(shards):,}", runtime.world, runtime.device.type)
            for line in level_counts.absent(schema, shards.levels_NA):
                log.warning(line)
            finished = train(trainer, open_data, stop)
        except Exception as error:
            if isinstance(error, ValueError) and before and before.state == "finished":
                status.restore(folder, before)  # a start that is refused makes no failure of a run that has ended well
            else:
                tell(state="failed", error=_in_words(error))
            if trainer is not None:
                trainer.writer.finish(FINISH_S)
            if _is_permanent(error, took_a_step=trainer is not None and trainer.images > began):
                raise errors.PermanentError from error
            raise
        log.info(
            "%s at %s images; tiles: attributegan-sample %s --out DIR --sweep",
            "finished" if finished else "stopped and saved",
            f"{trainer.images:,}",
            shlex.quote(settings.run.dir),
        )
        tell(state="finished" if finished else _stopped_state(stop.signal), images=trainer.images)
        runtime.barrier()  # a launcher may end all processes when the first one does
    return 0 if finished else stop.signal or signal.SIGTERM


def _in_words(error: Exception) -> str:
    from attributegan.distributed.watchdog import is_peer_failure

    if is_peer_failure(error):
        return "another process of the run has ended; its own error, or the launcher's, says why. Start the same command to go on"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def _locked(settings: Config, runtime: Runtime) -> Iterator[None]:
    """The run folder for this run alone; when it is another's, every process is refused."""
    from attributegan.run_dir.lock import RunLock

    lock, refusal = RunLock(Path(settings.run.dir), "training"), ""
    if runtime.is_main:
        try:
            lock.acquire()
        except ValueError as error:
            refusal = str(error)
    if refusal := runtime.broadcast_object(refusal):
        raise ValueError(refusal)
    try:
        yield
    finally:
        lock.release()


def _stopped_state(number: int) -> status.State:
    """A Slurm job stopped by a signal comes again, unless it was SIGINT: that one is a person's."""
    return "preempted" if status.slurm_job() and number != signal.SIGINT else "stopped"


def _is_permanent(error: Exception, took_a_step: bool) -> bool:
    """Divergence from the last checkpoint on does, and memory that doesn't suffice for the first step."""
    from torch import OutOfMemoryError

    from attributegan.training.trainer import Diverged

    no_memory = isinstance(error, OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return isinstance(error, Diverged) or (no_memory and not took_a_step)


def open_shards(settings: Config) -> ShardSet:
    """The shards that ``settings`` name, to train on and to evaluate with; ValueError when they can't be used."""
    from data_shards.loader.shard_set import ShardSet
    from data_shards.storage.cache import Cache

    data = settings.data
    cache = Cache.of(data.cache, data.cache_gb)
    if settings.evaluate.every:  # refused now, not by the evaluation
        ShardSet.open(data.shards, settings.evaluate.split, data.assessable_only, cache, split_option="evaluate.split")
    return ShardSet.open(data.shards, data.split, data.assessable_only, cache, data.attributes)


def _order(settings: Config, shards: ShardSet) -> GlobalShuffle | WindowedShuffle:
    from data_shards.sampler.global_order import GlobalShuffle
    from data_shards.sampler.windowed_order import WindowedShuffle

    seed, data = settings.train.seed, settings.data
    window = data.shuffle_window or (REMOTE_WINDOW if shards.is_remote else 0)
    if window:
        return WindowedShuffle(shards.levels_NA, shards.rows.shard_N, seed, data.balance, window)
    return GlobalShuffle(shards.levels_NA, seed, data.balance)


def model_schema(settings: Config, data: AttributeSchema) -> AttributeSchema:
    """The attributes that the model is asked to have; those of the data when nothing else is said.

    Raises:
        ValueError: they are not those of the data; names each difference.
    """
    name = settings.model.attributes
    schema = {"": data, "published": PUBLISHED}.get(name) or AttributeSchema.from_yaml(name)
    if differences := schema.difference(data):
        from data_shards.storage import stores

        location = stores.redact(settings.data.shards)
        raise ValueError(f"model.attributes: {name} does not fit the shards in {location}: {'; '.join(differences)}")
    return schema


if __name__ == "__main__":
    sys.exit(main())
