"""``attributegan-presets``: lists the configurations that ship, prints the path of one, or copies them to a folder to edit."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from attributegan import presets
from attributegan.cli import exit_status, parser
from attributegan.utils.files import atomic_path, check_new_folder
from attributegan.utils.layout import configs_dir

EXAMPLES = """\
  attributegan-presets                            the names, by what they are for
  attributegan-presets --copy configs             a folder configs/ with all of them, to edit; then pass their paths
  accelerate launch --config_file "$(attributegan-presets --path accelerate/cpu)" -m attributegan train --config small ..."""

OPTIONS = {
    "train": "attributegan-train --config NAME",
    "slurm": "attributegan-submit --cluster NAME",
    "sweep": "attributegan-submit --array NAME",
    "attributes": "--attributes NAME",
    "studies": "attributegan-study NAME",
    "accelerate": "accelerate launch --config_file PATH",
    "deepspeed": "deepspeed.generator=NAME deepspeed.discriminator=NAME",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), list or copy, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _presets(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("List the configurations that ship with attributegan; options accept them by name.", EXAMPLES)
    what = result.add_mutually_exclusive_group()
    what.add_argument("--copy", metavar="DIR", type=Path, help="copy all of them to DIR; new, or empty")
    what.add_argument("--path", metavar="KIND/NAME", help="print the path of one, such as accelerate/cpu")
    return result


def _presets(options: argparse.Namespace) -> None:
    if options.copy:
        check_new_folder(options.copy)
        with atomic_path(options.copy) as folder:
            shutil.copytree(configs_dir(), folder)
        print(f"{options.copy}: copied; edit them and give them by path, such as --config {options.copy / 'train' / 'small.yaml'}")
    elif options.path:
        print(path_of(options.path))
    else:
        width = max(map(len, OPTIONS.values()))
        for kind, option in OPTIONS.items():
            print(f"{option:{width}}  {' '.join(presets.presets(kind))}")


def path_of(name: str) -> Path:
    """The path of ``kind/name``; ValueError lists what there is."""
    kind, _, preset = name.partition("/")
    if kind not in OPTIONS:
        raise ValueError(f"--path {name}: write KIND/NAME; kinds are {', '.join(OPTIONS)}")
    known = presets.presets(kind)
    if preset not in known:
        raise ValueError(f"--path {name}: no such preset; {kind} has {', '.join(known)}")
    return known[preset]


if __name__ == "__main__":
    sys.exit(main())
