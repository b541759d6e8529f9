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
from tools.benchmarks import data, explore, scaling, train

EXAMPLES = """\
  attributegan-bench read --images tiles --workers 2
  attributegan-bench pack --repeats 7 --json pack.json
  attributegan-bench start --rows 1000000
  attributegan-bench checkpoint model.image_size=256 --batch 2
  attributegan-bench explore
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
    contenders: dict[str, list[float]]
    against: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def ratios(self) -> dict[str, list[float]]:
        """One side over another, turn by turn."""
        return {f"{a} / {b}": [x / y for x, y in zip(self.contenders[a], self.contenders[b], strict=True)] for a, b in self.against}

    def lines(self) -> list[str]:
        rows = [_line(contender, values, self.unit) for contender, values in self.contenders.items()]
        return [self.name, *rows, *(_line(name, values, "") for name, values in self.ratios().items()),
                *(f"  {name}: {value}" for name, value in self.facts.items())]  # fmt: skip


def _line(name: str, values: Sequence[float], unit: str) -> str:
    return f"  {name:32s} {statistics.median(values):12,.4g} {unit}  ({min(values):,.4g} to {max(values):,.4g})"


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every side once to warm up and then ``repeats`` times, one after the other; each gives its own value."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            value = contender()
            if turn:
                values[name].append(value)
    return values


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from data_shards import worker_pool

    return {
        "cores": worker_pool.available(),
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
    data.add(commands, common)
    train.add(commands, common)
    scaling.add(commands)
    explore.add(commands, common)
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
