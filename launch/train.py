"""``attributegan-train``: sets up and runs training from configuration, shards and processes; the script for ``accelerate launch``."""

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
from typing import TYPE_CHECKING, Any

from attributegan import cli, config, errors, option_help
from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.config import Config
from attributegan.run_dir import resolved_config, status

if TYPE_CHECKING:  # slow imports, deferred so that --help is fast
    from attributegan.distributed.runtime import Runtime
    from attributegan.run_dir.trackers import Trackers
    from attributegan.training.loop import StopSignal
    from data_shards.loader.shard_set import ShardSet
    from data_shards.sampler.global_order import GlobalShuffle
    from data_shards.sampler.windowed_order import WindowedShuffle
    from launch.evaluator import BackgroundEvaluator
    from launch.notify import Notifier

EXAMPLES = """\
  attributegan-train --config small data.shards=shards run.dir=runs/first train.images=40000
  accelerate launch --config_file "$(attributegan-presets --path accelerate/cpu)" --num_processes 2 \\
      -m attributegan train --config small data.shards=shards run.dir=runs/first
With the same run.dir, training resumes from the latest checkpoint. Ctrl-C and SIGTERM save a checkpoint before exiting."""

FINISH_S = 5.0  # to finish a checkpoint write after an error; other ranks may have exited without writing their part
REPORT_ERROR_S = 30.0  # to report an error to the other ranks before exiting
log = logging.getLogger("attributegan")

REMOTE_WINDOW = 8  # in shards; a fully random order would need all shards of a remote set at once


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    cli.restrict_umask()
    stopped_by = 0

    def work() -> None:
        nonlocal stopped_by
        stopped_by = run(_settings(arguments))

    return cli.exit_status(work) or (128 + stopped_by if stopped_by else 0)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Train an AttributeGAN on a set of shards.", EXAMPLES, add_help=False)
    option_help.add_option_help(parser)
    parser.add_argument(
        "--config", required=True, metavar="NAME|FILE", help="a preset such as small (attributegan-presets lists them), or a YAML file"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options that override the file")
    return parser


def _settings(arguments: argparse.Namespace) -> Config:
    """Load the configuration; an error is reported to the other ranks, which would otherwise wait for this one."""
    try:
        return config.load(arguments.config, arguments.overrides)
    except ValueError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from attributegan.distributed.rendezvous import wait_for_all_ranks

            wait_for_all_ranks(REPORT_ERROR_S, str(error))
        raise


def run(settings: Config) -> int:
    """Train with ``settings``.

    Returns:
        the number of the signal that stopped the run early, 0 if it finished.

    Raises:
        ValueError: invalid settings or data, or a run folder in use; before any compute.
        TransientError: a store or another process failed; retrying may succeed.
        PermanentError: retrying would fail again.
    """
    from torch.distributed.elastic.multiprocessing.errors import record

    from attributegan.distributed.runtime import Runtime
    from attributegan.distributed.watchdog import Watchdog
    from attributegan.run_dir.reporter import init_logging
    from attributegan.run_dir.trackers import Trackers, require_installed
    from attributegan.training.loop import StopSignal
    from launch.evaluator import BackgroundEvaluator
    from launch.notify import Notifier

    runtime = Runtime(settings)
    settings = runtime.config  # with train.precision=auto resolved
    evaluator, code = BackgroundEvaluator(settings), None
    notifier = Notifier(settings.run.notify if runtime.is_main else "", Path(settings.run.dir))
    trackers = Trackers(settings.run.trackers if runtime.is_main else (), Path(settings.run.dir))
    try:

        def open_data() -> tuple[ShardSet, AttributeSchema]:
            require_installed(trackers.names)
            shards = open_shards(settings)
            return shards, model_schema(settings, shards.schema)

        with ExitStack() as stack:
            with Watchdog(runtime.rank, runtime.world, f"{runtime.launch_id} start", lambda: False):
                shards, schema = runtime.run_and_raise_everywhere(open_data)
                settings = _redacted(settings)  # the shards are open; the URL is not needed from here on
                sharding = {f"sharding of the {name}": str(how) for name, how in runtime.sharding.items()}
                runtime.check_same(**facts(settings, shards), **sharding)
                stack.enter_context(_locked(settings, runtime))
            stop = stack.enter_context(StopSignal())
            init_logging(Path(settings.run.dir), runtime.is_main)
            runtime.log_precision()
            # `record` writes the error to a file for the launcher, which reports the first one as the root cause.
            code = record(_train)(settings, shards, schema, runtime, stop, evaluator, notifier, trackers)
            assert code is not None
            return code
    finally:
        runtime.shutdown()
        evaluator.end(wait=code == 0)
        notifier.close()
        trackers.evaluations()  # that of the last checkpoint
        trackers.close()


def _redacted(settings: Config) -> Config:
    """Returns ``settings`` without possible secrets in the URL of the shards, to be saved and compared between ranks."""
    from data_shards.storage import stores

    return replace(settings, data=replace(settings.data, shards=stores.redact(settings.data.shards)))


def by_name(settings: Config) -> dict[str, Any]:
    """Returns all options as ``section.key``."""
    return {f"{section}.{key}": value for section, tree in settings.to_dict().items() for key, value in tree.items()}


def facts(settings: Config, shards: ShardSet) -> dict[str, str]:
    """Returns what must be equal on all ranks: options, code, data, and the version of torch."""
    import torch

    from attributegan.run_dir import code_digest

    options = {name: str(value) for name, value in by_name(settings).items()}
    return options | {"code": code_digest.code_digest(), "data.shards (index)": shards.fingerprint, "torch": torch.__version__}


def _train(
    settings: Config,
    shards: ShardSet,
    schema: AttributeSchema,
    runtime: Runtime,
    stop: StopSignal,
    evaluator: BackgroundEvaluator,
    notifier: Notifier,
    trackers: Trackers,
) -> int:
    from attributegan.distributed.watchdog import Watchdog
    from attributegan.training.loop import train
    from attributegan.training.trainer import Batch, Trainer
    from data_shards.loader.loader import batches
    from data_shards.packing import level_counts

    folder = Path(settings.run.dir)

    def update_status(**changes: object) -> None:
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
            update_status(
                state="running", total=settings.train.images, processes=runtime.world, images_per_second=0.0, **status.process_location()
            )
            trainer = Trainer(settings, schema, runtime)
            trainer.resume()
            began = trainer.images
            if began >= settings.train.images + settings.train.batch:
                raise ValueError(
                    f"train.images: {settings.train.images:,} is below the {began:,} that {settings.run.dir} was trained on; "
                    "increase it, or set it to its previous value"
                )
            if began and before and before.shards not in ("", shards.fingerprint):
                log.warning(
                    "data.shards: %s has changed since the checkpoint: from %s images on, training uses the new tiles",
                    shards.location,
                    f"{began:,}",
                )
            update_status(images=began, error="", shards=shards.fingerprint, init=trainer.init)
            if runtime.is_main:
                resolved_config.write(folder, config.dump(settings))
                notifier.send("start", began, f"training to {settings.train.images:,} images")
                trackers.start(began, by_name(settings))
                evaluator.start()  # reads train.images from config.yaml, to know which checkpoint is the last
            for line in trainer.memory_report():
                log.info(line)
            log.info("%s tiles, world size %s, device %s", f"{len(shards):,}", runtime.world, runtime.device.type)
            for line in level_counts.absent(schema, shards.levels_NA):
                log.warning(line)
            finished = train(trainer, open_data, stop, trackers)
        except Exception as error:
            if isinstance(error, ValueError) and before and before.state == "finished":
                status.restore(folder, before)  # a refused start does not change the status of a finished run
            else:
                update_status(state="failed", error=_describe_error(error))
            notifier.send("failed", trainer.images if trainer is not None else 0, _describe_error(error))
            if trainer is not None:
                trainer.writer.finish(FINISH_S)
            if _is_permanent(error, took_a_step=trainer is not None and trainer.images > began):
                raise errors.PermanentError from error
            raise
        log.info(
            "%s at %s images; to sample tiles: attributegan-sample %s --out DIR --sweep",
            "finished" if finished else "stopped and saved",
            f"{trainer.images:,}",
            shlex.quote(settings.run.dir),
        )
        update_status(state="finished" if finished else _stopped_state(stop.signal), images=trainer.images)
        how = "finished" if finished else f"stopped by {signal.Signals(stop.signal).name}" if stop.signal else "stopped"
        notifier.send("finished" if finished else "stopped", trainer.images, f"{how} at {trainer.images:,} images")
        runtime.barrier()  # a launcher may terminate all ranks when the first one exits
    return 0 if finished else stop.signal or signal.SIGTERM


def _describe_error(error: Exception) -> str:
    from attributegan.distributed.watchdog import is_peer_failure

    if is_peer_failure(error):
        return "another process of the run exited; see its error or the launcher's output. Run the same command again to resume"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def _locked(settings: Config, runtime: Runtime) -> Iterator[None]:
    """Hold the lock of the run folder; raises ValueError on every rank if another run holds it."""
    from attributegan.run_dir.lock import RunLock

    lock, error_message = RunLock(Path(settings.run.dir), "training"), ""
    if runtime.is_main:
        try:
            lock.acquire()
        except ValueError as error:
            error_message = str(error)
    if error_message := runtime.broadcast_object(error_message):
        raise ValueError(error_message)
    try:
        yield
    finally:
        lock.release()


def _stopped_state(number: int) -> status.State:
    """Returns "preempted" for a Slurm job, which is requeued, except on SIGINT, which a user sends; else "stopped"."""
    return "preempted" if status.slurm_job() and number != signal.SIGINT else "stopped"


def _is_permanent(error: Exception, took_a_step: bool) -> bool:
    """Returns whether retrying would fail again: divergence, or out of memory before the first step."""
    from torch import OutOfMemoryError

    from attributegan.training.trainer import Diverged

    no_memory = isinstance(error, OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return isinstance(error, Diverged) or (no_memory and not took_a_step)


def open_shards(settings: Config) -> ShardSet:
    """Open the shards to train on; also checks those to evaluate on.

    Raises:
        ValueError: the shards can't be used.
    """
    from data_shards.loader.shard_set import ShardSet
    from data_shards.storage.cache import Cache

    data = settings.data
    cache = Cache.of(data.cache, data.cache_gb)
    if settings.evaluate.every:  # fail now rather than in the evaluation
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
    """Returns the attributes of the model: those of ``model.attributes``, by default those of the data.

    Raises:
        ValueError: they differ from those of the data; the message names each difference.
    """
    name = settings.model.attributes
    schema = {"": data, "published": PUBLISHED}.get(name) or AttributeSchema.from_yaml(name, "model.attributes")
    if differences := schema.difference(data):
        from data_shards.storage import stores

        location = stores.redact(settings.data.shards)
        raise ValueError(f"model.attributes: {name} does not fit the shards in {location}: {'; '.join(differences)}")
    return schema


if __name__ == "__main__":
    sys.exit(main())
