"""Options shared by several commands (shard cache, precision), and the step from parsed options to a settings dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attributegan.config import DataConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from data_shards.storage.cache import Cache  # slow to import

    Settings = TypeVar("Settings", bound=DataclassInstance)
Result = TypeVar("Result")


def settings_of(cls: type[Settings], options: argparse.Namespace, **changes: Any) -> Settings:
    """Build a settings dataclass from parsed options.

    Args:
        cls: dataclass whose fields are named after the options; options that it doesn't have are ignored, lists become tuples.
        changes: values that replace those of ``options``.

    Raises:
        ValueError: from the checks of ``cls``.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)} | changes
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def with_settings(work: Callable[[Settings], Result], cls: type[Settings]) -> Callable[[argparse.Namespace], Result]:
    """Wrap ``work``, which takes settings, as a function of parsed options; for ``set_defaults`` of a subcommand."""
    return lambda options: work(settings_of(cls, options))


def require_at_least(settings: DataclassInstance, **minimums: float) -> None:
    """Check that options are at least the given values; None passes.

    Raises:
        ValueError: names the option.
    """
    for name, minimum in minimums.items():
        value = getattr(settings, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"--{name.replace('_', '-')}: {value} must be at least {minimum}")


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str, examples: Sequence[str], **options: Any
) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with ``examples``; its description is ``help`` as a sentence, unless ``options`` has one."""
    description = options.pop("description", f"{help[0].upper()}{help[1:]}.")
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples)
    return commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )


class CacheSettings(Protocol):
    """Settings of commands with `add_cache`."""

    @property
    def shards_cache(self) -> str: ...

    @property
    def shards_cache_gb(self) -> float: ...


def add_cache(parser: argparse.ArgumentParser, name: str = "cache") -> None:
    """Add the options of the shard cache, ``--NAME`` and ``--NAME-gb``."""
    parser.add_argument(
        f"--{name}",
        dest="shards_cache",
        default="",
        metavar="DIR",
        help="cache folder for the shards of a remote set (default: ~/.cache/attributegan)",
    )
    parser.add_argument(
        f"--{name}-gb",
        dest="shards_cache_gb",
        type=_gigabytes,
        default=DataConfig.cache_gb,
        metavar="GB",
        help="maximum size of that cache in GB (default: %(default)s)",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision``."""
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="precision of the generator; auto: bf16 if the hardware supports it, else fp32 (CPU) or fp16 (GPU) (default: %(default)s)",
    )


def add_evaluation_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``, the folder of features and predictors of real tiles."""
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="cache folder for features and predictors of real tiles (default: ~/.cache/attributegan/evaluation)",
    )


def add_no_ema(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-ema``."""
    parser.add_argument("--no-ema", action="store_true", help="use the raw generator weights instead of their moving average (EMA)")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``."""
    parser.add_argument("--workers", type=int, metavar="N", help="number of worker processes (default: one per CPU core)")


def add_attributes(parser: argparse.ArgumentParser) -> None:
    """Add ``--attributes``."""
    parser.add_argument(
        "--attributes",
        type=Path,
        metavar="NAME|FILE",
        help="a preset such as bladder, or a YAML file with your attributes (default: the attributes of the paper, preset bladder)",
    )


def resolve_precision(precision: str) -> str:
    """Return ``precision`` with "auto" resolved for this process's device; prints the choice, or a warning if it is slow, to stderr."""
    import torch

    from attributegan.utils import precision as precision_module

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen, reason = precision_module.choose(device) if precision == "auto" else (precision, "")
    message = f"--precision: {chosen} ({reason})" if reason else precision_module.warning(chosen, device, "--precision ")
    if message:
        print(message, file=sys.stderr, flush=True)
    return chosen


def _gigabytes(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return float(text)


def open_cache(settings: CacheSettings) -> Cache:
    """Open the shard cache of a command's settings."""
    from data_shards.storage.cache import Cache

    return Cache.of(settings.shards_cache, settings.shards_cache_gb)


def worker_count(workers: int | None) -> int:
    """Return the number of worker processes: ``--workers``, or one per CPU core.

    Raises:
        ValueError: below 1.
    """
    from data_shards import worker_pool

    if workers is not None and workers < 1:
        raise ValueError(f"--workers: {workers} must be above 0")
    return workers or worker_pool.available()
