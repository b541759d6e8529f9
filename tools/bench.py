"""``attributegan-bench``: measures speed against baselines.

Contenders run in turns, so that other load on the machine affects all of them alike; results are ratios with their spread. The benchmarks
are in `tools.benchmarks`.
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
from tools.benchmarks import cluster, data, diffusion, explore, gpu, measure, merge, scaling, train
from tools.benchmarks.harness import Result

EXAMPLES = """\
  attributegan-bench read --images tiles --workers 2
  attributegan-bench pack --repeats 7 --json pack.json
  attributegan-bench start --rows 1000000
  attributegan-bench checkpoint model.image_size=256 --batch 2
  attributegan-bench explore
  attributegan-bench gpu --out gpu
  attributegan-bench measure --images glioma/images --masks glioma/nuclei
Prints the median of each contender with the range over its turns, and ratios between contenders, taken turn by turn. On a machine with
other load, rely on the ratios."""


def machine() -> dict[str, Any]:
    """Return the facts about this machine that the results depend on."""
    from attributegan.utils import precision
    from data_shards import worker_pool

    return {
        "cores": worker_pool.available(),
        "processor": precision.cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = _parser().parse_args(argv)
    if "run" in options:
        return int(options.run(options))

    def work() -> None:
        if "estimate" in options:
            return print("\n".join(options.estimate(options)))
        if options.repeats < 1:
            raise ValueError(f"--repeats: {options.repeats} must be above 0")
        result: Result = options.measure(options)
        print("\n".join(result.lines()))
        if options.json:
            tree = asdict(result) | {"ratios": result.ratios(), "machine": machine()}
            options.json.write_text(json.dumps(tree, indent=2) + "\n")

    return cli.exit_status(work)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Measure the speed of reading, packing, training, sampling and serving against baselines.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repeats", type=int, default=5, metavar="N", help="measured turns of each contender (default: %(default)s)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write all measured values to this file")
    data.add(commands, common)
    cluster.add(commands, common)
    merge.add(commands, common)
    train.add(commands, common)
    scaling.add(commands)
    explore.add(commands, common)
    measure.add(commands, common)
    diffusion.add(commands, common)
    gpu.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
