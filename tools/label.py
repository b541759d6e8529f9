"""``attributegan-label``: serves a web page for labelling tiles with attribute levels.

Owns the command line; the pages are in `tools.labeler`. The subcommand ``2afc`` is in `tools.two_afc`.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.cli import exit_status, parser
from tools import options as options_module
from tools.explore import add_address, check_address, read_token
from tools.options import settings_of

if TYPE_CHECKING:  # slow to import; --help must be fast
    from tools.labeler.consensus import Writer
    from tools.labeler.predictions import Predictions
    from tools.labeler.ratings import Ratings
    from tools.labeler.tiles import Tiles

EXAMPLES = """\
  attributegan-label tiles --out levels.csv                                       prints the address to open
  attributegan-label tiles --out levels.csv --attributes my.yaml --shared 0.2     a fifth of the tiles goes to every rater,
                                                                                  each other tile to one
  attributegan-label tiles --out levels.csv --predictor CACHE/judge-0123          most uncertain tiles first
  attributegan-label tiles --out levels.csv --disagreement 1 --no-page            rewrite the CSV files with another rule
  attributegan-shard pack --images tiles --labels levels.csv --out shards         pack the labelled tiles
  attributegan-label 2afc runs/first --shards shards --out study                  another page: which of two tiles is real?"""


@dataclass(frozen=True)
class LabelSettings:
    """Which tiles to label, how to merge the raters' levels, and where to listen. Fields are the options of the command.

    Raises:
        ValueError: names the option that is wrong.
    """

    tiles: Path
    out: Path
    attributes: Path | None = None
    table: Path | None = None  # CSV with further columns to keep
    seed: int | None = None  # None: as in the ratings file, or 0
    shared: float | None = None  # fraction of the tiles for every rater; None: as in the ratings file, or 0
    disagreement: int | None = None  # maximum distance of levels; None: any
    predictor: Path | None = None
    predictor_size: int | None = None  # pixels
    random: bool = False
    cache: Path | None = None
    no_page: bool = False
    host: str = "127.0.0.1"
    port: int = 7861
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".csv":
            raise ValueError(f"--out: {self.out} must end in .csv")
        if not self.out.parent.is_dir():
            raise ValueError(f"--out: {self.out.parent} is not a folder; create it first")
        if self.shared is not None and not 0 <= self.shared <= 1:
            raise ValueError(f"--shared: {self.shared} is not from 0 to 1")
        if self.disagreement is not None and self.disagreement < 0:
            raise ValueError(f"--disagreement: {self.disagreement} is below 0")
        if self.predictor_size is not None and not 8 <= self.predictor_size <= 1024:
            raise ValueError(f"--predictor-size: {self.predictor_size} is not from 8 to 1024")
        check_address(self.host, self.port)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page with ``argv`` (default: ``sys.argv``) until interrupted, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["2afc"]:
        from tools.two_afc import command

        return command.main(arguments[1:])
    options = _parser().parse_args(arguments)
    return exit_status(lambda: label(settings_of(LabelSettings, options)))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Serve a web page for labelling tiles with attribute levels. Every answer is saved at once to NAME.ratings.jsonl next to FILE.\n"
        "Rerun the same command to resume. Listens on localhost unless --host is given; other machines then need a token.\n"
        "`attributegan-label 2afc --help`: a page on which readers choose the real one of two tiles.",
        EXAMPLES,
    )
    result.add_argument("tiles", metavar="TILES", type=Path, help="folder with the tiles")
    result.add_argument(
        "--out", metavar="FILE", required=True, type=Path, help="CSV file to write the levels to; also writes NAME.agreement.csv"
    )
    options_module.add_attributes(result)
    result.add_argument(
        "--table",
        metavar="CSV",
        type=Path,
        help="CSV file with a column `file` and further columns to copy, such as the slide (default: TILES/tiles.csv, if it exists)",
    )
    result.add_argument(
        "--seed", metavar="S", type=int, help="random seed of the tile order and of the shared tiles (default: the last value, or 0)"
    )
    result.add_argument(
        "--shared",
        metavar="X",
        type=float,
        help="fraction of the tiles that go to every rater, 0 to 1; each other tile goes to one rater (default: the last value, or 0)",
    )
    result.add_argument(
        "--disagreement", metavar="N", type=int, help="write -1 if raters differ by more than N levels (default: always write the median)"
    )
    result.add_argument(
        "--predictor",
        metavar="DIR",
        type=Path,
        help="predictor folder (judge-…) in the cache of attributegan-evaluate: shows the most uncertain tiles first, and the predicted "
        "levels after each answer",
    )
    result.add_argument(
        "--predictor-size", metavar="PIXELS", type=int, help="tile size that the predictor was trained with (default: saved in its folder)"
    )
    result.add_argument("--random", action="store_true", help="random tile order, also with --predictor")
    result.add_argument(
        "--cache", metavar="DIR", type=Path, help="cache folder for predictions (default: ~/.cache/attributegan/evaluation)"
    )
    result.add_argument("--no-page", action="store_true", help="write the CSV files from the saved answers and exit")
    add_address(result, LabelSettings.host, LabelSettings.port)
    return result


def label(settings: LabelSettings) -> None:
    """Serve the pages until interrupted, then write the CSV files.

    Raises:
        ValueError: tiles, attributes, answers or an address that can't be used.
    """
    try:
        from tools.explorer import listening
        from tools.labeler import consensus, ratings, tiles
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'attributegan[explore]'") from error
    schema = AttributeSchema.from_yaml(settings.attributes, "--attributes") if settings.attributes else PUBLISHED
    given = read_token(settings.token_file) if settings.token_file else ""
    found = tiles.find_tiles(settings.tiles, settings.table)
    path = settings.out.with_name(f"{settings.out.stem}.ratings.jsonl")
    if settings.no_page and not path.exists():
        print(f"{settings.out}: no answers yet")
        return
    with closing(ratings.Ratings(path, schema)) as answers:
        writer = consensus.Writer(settings.out, found, answers, settings.disagreement)
        if settings.no_page:
            print(_summary(writer, settings.out))
            return
        with listening.listen(settings.host, settings.port) as listener:
            _serve(settings, found, answers, writer, listener, given)
        print(_summary(writer, settings.out), flush=True)


def _serve(settings: LabelSettings, tiles: Tiles, answers: Ratings, writer: Writer, listening: socket.socket, given: str) -> None:
    from tools.explorer import auth
    from tools.explorer.listening import serve
    from tools.labeler.app import Labeler, application
    from tools.labeler.queue import Queue

    saved = {"seed": 0, "shared": 0.0} | answers.state.settings
    given_order = {name: value for name, value in (("seed", settings.seed), ("shared", settings.shared)) if value is not None}
    order = saved | given_order
    predictions = _predictions(settings, settings.predictor, tiles, answers.schema) if settings.predictor else None
    uncertainty = predictions.uncertainty if predictions and not settings.random else None
    answers.set(**order)
    queue = Queue(tiles.files, answers, order["seed"], order["shared"], uncertainty)
    writer.write()  # answers that a killed process had not written
    labeler = Labeler(tiles, answers, queue, writer, predictions.levels if predictions else {})
    token = given if given or auth.is_loopback(settings.host) else secrets.token_urlsafe(24)
    port = listening.getsockname()[1]
    address = f"http://{auth.host_to_open(settings.host)}:{port}/" + (f"?token={token}" if token and not given else "")
    print(f"{len(tiles.files):,} tiles of {settings.tiles}: {address}    (Ctrl-C to stop)", flush=True)
    serve(application(labeler, settings.host, token, port), listening)


def _predictions(settings: LabelSettings, folder: Path, tiles: Tiles, schema: AttributeSchema) -> Predictions:
    from attributegan.evaluation.reference import FeatureCache
    from tools.labeler.predictions import predict

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\rpredictions: {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return predict(folder, schema, tiles, settings.predictor_size, FeatureCache.at(settings.cache), progress)


def _summary(writer: Writer, out: Path) -> str:
    """Write the CSV files and return a summary."""
    count = writer.write()
    missing = f"; {writer.missing:,} labelled tiles are no longer in the folder" if writer.missing else ""
    return f"{out}: levels of {count:,} tiles{missing}" if count or writer.missing else f"{out}: no answers yet"


if __name__ == "__main__":
    sys.exit(main())
