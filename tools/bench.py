"""``attributegan-bench``: how fast things are, against the plain way to do them.

Owns the harness: sides run in turns, so that whatever else the machine does meets all of them, and results are ratios with their spread.
What is measured is in the modules that `add` their benchmarks here.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attributegan import cli
from tools import bench_data, bench_explore, bench_scaling, bench_train
from tools.benchmarks import measure as bench_measure

EXAMPLES = """\
  attributegan-bench read --images tiles --workers 2
  attributegan-bench pack --repeats 7 --json pack.json
  attributegan-bench start --rows 1000000
  attributegan-bench checkpoint model.image_size=256 --batch 2
  attributegan-bench explore
  attributegan-bench measure --images glioma/images --masks glioma/nuclei
Each line has the median of a side and how far its turns spread. Ratios are taken turn by turn. On a machine that does other things at the
same time, look at those."""


@dataclass
class Result:
    """What one benchmark measured.

    Args:
        unit: of the values; those of a rate are better when larger.
        sides: the values of each side, turn by turn.
        against: the side that others are compared with, if any.
        facts: what else was measured or must be known, such as sizes.
    """

    name: str
    unit: str
    sides: dict[str, list[float]]
    against: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """One side over another, turn by turn."""
        return {f"{a} / {b}": [x / y for x, y in zip(self.sides[a], self.sides[b], strict=True)] for a, b in self.against}

    def lines(self) -> list[str]:
        rows = [_line(side, values, self.unit) for side, values in self.sides.items()]
        return [self.name, *rows, *(_line(name, values, "") for name, values in self.ratios().items()),
                *(f"  {name}: {value}" for name, value in self.facts.items())]  # fmt: skip


def _line(name: str, values: Sequence[float], unit: str) -> str:
    return f"  {name:32s} {statistics.median(values):12,.4g} {unit}  ({min(values):,.4g} to {max(values):,.4g})"


def in_turns(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every side once to warm up and then ``repeats`` times, one after the other; each gives its own value."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            value = side()
            if turn:
                values[name].append(value)
    return values


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from data_shards import workers

    return {
        "cores": workers.available(),
        "processor": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("Measure how fast things are, against the plain way to do them.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of every side (%(default)s)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    bench_data.add(commands, common)
    bench_train.add(commands, common)
    bench_scaling.add(commands)
    bench_explore.add(commands, common)
    bench_measure.add(commands, common)
    arguments = parser.parse_args(argv)

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
