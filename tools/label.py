"""``attributegan-label``: a page on which people give tiles their levels.

Owns the command line; the page is `tools.labeler`'s.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.cli import exit_status, parser
from tools.explore import read_token

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from tools.labeler.consensus import Writer
    from tools.labeler.predictions import Predictions
    from tools.labeler.ratings import Ratings
    from tools.labeler.tiles import Tiles

EXAMPLES = """\
  attributegan-label tiles --out levels.csv                                       then open the address that it prints
  attributegan-label tiles --out levels.csv --attributes my_attributes.yaml --shared 0.2     a fifth of the tiles for every rater
  attributegan-label tiles --out levels.csv --predictor CACHE/judge-0123          most uncertain tiles first
  attributegan-label tiles --out levels.csv --disagreement 1 --no-page            write the CSVs again, by another rule
  attributegan-shard pack --images tiles --labels levels.csv --out shards         what it writes packs as it is"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), serve until stopped, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _label(options))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Serve a page on which people give tiles their levels, with buttons or keys. Every answer is saved at once, beside the CSV in "
        "NAME.ratings.jsonl; the same command resumes. Listens on this machine alone, unless --host says otherwise; then asks for a token.",
        EXAMPLES,
    )
    result.add_argument("tiles", metavar="TILES", type=Path, help="folder of the tiles")
    result.add_argument("--out", metavar="FILE", required=True, type=Path, help="CSV of the levels; NAME.agreement.csv goes beside it")
    result.add_argument("--attributes", metavar="FILE", type=Path, help="YAML with your attributes; without it, the five of the paper")
    result.add_argument(
        "--table",
        metavar="CSV",
        type=Path,
        help="has a column `file` and others to keep in the CSV, such as the slide (TILES/tiles.csv, if there is one)",
    )
    result.add_argument("--seed", metavar="S", type=int, help="of the order of the tiles and of those that are shared (0, or as last time)")
    result.add_argument(
        "--shared", metavar="X", type=float, help="share of the tiles that every rater is given, 0 to 1 (0, or as last time)"
    )
    result.add_argument(
        "--disagreement", metavar="N", type=int, help="write -1 where raters are more than N levels apart, instead of the median"
    )
    result.add_argument(
        "--predictor",
        metavar="DIR",
        type=Path,
        help="folder of a predictor (judge-…) of attributegan-evaluate's cache: most "
        "uncertain tiles first; what it reads is shown after each answer",
    )
    result.add_argument(
        "--predictor-size", metavar="PIXELS", type=int, help="tile size that it was trained at, if its folder doesn't say it"
    )
    result.add_argument("--random", action="store_true", help="random order, with --predictor too")
    result.add_argument("--cache", metavar="DIR", type=Path, help="for predictions (~/.cache/attributegan/evaluation)")
    result.add_argument("--no-page", action="store_true", help="write the CSVs from the answers and end")
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    result.add_argument("--port", type=int, default=7861, help="port to listen on; 0 takes any free one (%(default)s)")
    result.add_argument(
        "--token-file", metavar="FILE", type=Path, help="has the token that visitors must give; without it, --host makes a new one"
    )
    return result


def _label(options: argparse.Namespace) -> None:
    _check(options)
    try:
        from tools.explorer import listening
        from tools.labeler import consensus, ratings, tiles
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'attributegan[explore]'") from error
    schema = AttributeSchema.from_yaml(options.attributes) if options.attributes else PUBLISHED
    given = read_token(options.token_file) if options.token_file else ""
    found = tiles.find_tiles(options.tiles, options.table)
    with closing(ratings.Ratings(options.out.with_name(f"{options.out.stem}.ratings.jsonl"), schema)) as answers:
        writer = consensus.Writer(options.out, found, answers, options.disagreement)
        if options.no_page:
            print(_summary(writer, options.out))
            return
        with listening.listen(options.host, options.port) as listener:
            _serve(options, found, answers, writer, listener, given)
        print(_summary(writer, options.out), flush=True)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that can't be, before anything is read."""
    if options.out.suffix.lower() != ".csv":
        raise ValueError(f"--out: {options.out} is not named as a CSV; give a name that ends in .csv")
    if not options.out.parent.is_dir():
        raise ValueError(f"--out: {options.out.parent} is not a folder; make it first")
    if options.shared is not None and not 0 <= options.shared <= 1:
        raise ValueError(f"--shared: {options.shared} is not from 0 to 1")
    if options.disagreement is not None and options.disagreement < 0:
        raise ValueError(f"--disagreement: {options.disagreement} is below 0")
    if options.predictor_size is not None and not 8 <= options.predictor_size <= 1024:
        raise ValueError(f"--predictor-size: {options.predictor_size} is not from 8 to 1024")
    if not options.host:
        raise ValueError("--host: names no address; give one, such as 0.0.0.0 for all of this machine's")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port: {options.port} is not from 0 to 65535")


def _serve(options: argparse.Namespace, tiles: Tiles, answers: Ratings, writer: Writer, listening: socket.socket, given: str) -> None:
    from tools.explorer import auth
    from tools.explorer.listening import serve
    from tools.labeler.app import Labeler, application
    from tools.labeler.queue import Queue

    saved = {"seed": 0, "shared": 0.0} | answers.state.settings
    asked = {name: getattr(options, name) for name in ("seed", "shared") if getattr(options, name) is not None}
    settings = saved | asked
    predictions = _predictions(options, tiles, answers.schema) if options.predictor else None
    uncertainty = predictions.uncertainty if predictions and not options.random else None
    answers.set(**settings)
    queue = Queue(tiles.files, answers, settings["seed"], settings["shared"], uncertainty)
    writer.write()  # what a killed session had not written
    labeler = Labeler(tiles, answers, queue, writer, predictions.levels if predictions else {})
    token = given if given or auth.is_loopback(options.host) else secrets.token_urlsafe(24)
    port = listening.getsockname()[1]
    address = f"http://{auth.in_address(options.host)}:{port}/" + (f"?token={token}" if token and not given else "")
    print(f"{len(tiles.files):,} tiles of {options.tiles}: {address}    (Ctrl-C ends it)", flush=True)
    serve(application(labeler, options.host, token, port), listening)


def _predictions(options: argparse.Namespace, tiles: Tiles, schema: AttributeSchema) -> Predictions:
    from attributegan.evaluation.reference import FeatureCache
    from tools.labeler.predictions import predict

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rpredictions: {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return predict(options.predictor, schema, tiles, options.predictor_size, FeatureCache.at(options.cache), progress)


def _summary(writer: Writer, out: Path) -> str:
    """Write the CSVs once more and say what is in them."""
    count = writer.write()
    missing = f"; {writer.missing:,} more were labelled and are not in the folder any more" if writer.missing else ""
    return f"{out}: levels of {count:,} tiles{missing}" if count or writer.missing else f"{out}: no answers yet"


if __name__ == "__main__":
    sys.exit(main())
