"""``attributegan-bench``: how fast things are, against the plain way to do them.

Owns the harness: sides run in turns, so that whatever else the machine does meets all of them, and results are ratios with their spread.
What is measured is in the modules that `add` their benchmarks here.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attributegan import cli
from tools.benchmarks import data, explore, gpu, measure, scaling, train
from tools.benchmarks.harness import Result

EXAMPLES = """\
  attributegan-bench read --images tiles --workers 2
  attributegan-bench pack --repeats 7 --json pack.json
  attributegan-bench start --rows 1000000
  attributegan-bench checkpoint model.image_size=256 --batch 2
  attributegan-bench explore
  attributegan-bench gpu --out gpu
  attributegan-bench measure --images glioma/images --masks glioma/nuclei
Each line has the median of a side and how far its turns spread. Ratios are taken turn by turn. On a machine that does other things at the
same time, look at those."""


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from attributegan.utils import precision
    from data_shards import worker_pool

    return {
        "cores": worker_pool.available(),
        "processor": precision.cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("Measure how fast things are, against the plain way to do them.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of every side (%(default)s)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    data.add(commands, common)
    train.add(commands, common)
    scaling.add(commands)
    explore.add(commands, common)
    measure.add(commands, common)
    gpu.add(commands)
    arguments = parser.parse_args(argv)
    if "run" in arguments:
        return int(arguments.run(arguments))

    def work() -> None:
        if "estimate" in arguments:
            return print("\n".join(arguments.estimate(arguments)))
        if arguments.repeats < 1:
            raise ValueError(f"--repeats: {arguments.repeats} must be above 0")
        result: Result = arguments.measure(arguments)
        print("\n".join(result.lines()))
        if arguments.json:
            tree = asdict(result) | {"ratios": result.ratios(), "machine": machine()}
            arguments.json.write_text(json.dumps(tree, indent=2) + "\n")

    return cli.exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
