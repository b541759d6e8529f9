"""``attributegan-shard``: makes shard sets from tiles, checks them, and converts labels.

Owns the command line; the subcommands are in `tools.shards`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from attributegan import cli
from tools.shards import card, crop, import_labels, index, measure, pack, tables, tile, verify

EXAMPLES = """\
  attributegan-shard pack --images tiles --labels levels.csv --group slide --out shards
  attributegan-shard phantom --count 4000 --size 64 --out shards
  attributegan-shard verify shards
  attributegan-shard COMMAND --help          options and examples of a command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = parse(argv)
    status = 0

    def work() -> None:
        nonlocal status
        status = options.run(options)

    return cli.exit_status(work) or status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line (default: ``sys.argv``)."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Make shard sets from tiles, check them, and convert labels.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (pack, verify, index, tile, crop, import_labels, tables, card, measure):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
