"""``attributegan-explore``: a page with a slider for each attribute and the tile that follows.

Owns the command line; the page is `tools.explorer`'s.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.cli import exit_status, parser
from tools import options as options_module
from tools.progress import StageProgress

DEMO = Path(__file__).parent / "explorer" / "demo"  # its model card is README.md

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from attributegan.attributes import AttributeSchema
    from attributegan.evaluation.reference import Split

EXAMPLES = """\
  attributegan-explore --demo                                           a small generator that ships, trained on drawn tiles
  attributegan-explore runs/first                                       then open the address that it prints
  attributegan-explore runs/first --shards shards                       with the nearest real tiles and what the evaluation's judge reads
  attributegan-explore exported                                         a folder of `attributegan-export generator`
  attributegan-explore runs/first --host 0.0.0.0 --token-file token     for others too, who need the token"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), serve until stopped, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: _explore(options))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Serve a page on which the attributes of a model's tiles are moved, and a quiz. Listens on this machine alone, unless --host says "
        "otherwise; others then need a token. The tiles are synthetic, not for diagnosis.",
        EXAMPLES,
    )
    result.add_argument(
        "model",
        nargs="?",
        metavar="RUN|CHECKPOINT|EXPORT",
        type=Path,
        help="a run's folder (its newest checkpoint), one checkpoint, or an exported generator",
    )
    result.add_argument("--demo", action="store_true", help="the small generator that ships with attributegan, trained on drawn tiles")
    result.add_argument("--shards", metavar="DIR", help="shard set with real tiles: the nearest are shown, and its judge reads the tiles")
    options_module.add(result, "shards-cache")
    result.add_argument("--train", metavar="SPLIT", default="train", help="split that the model was trained on (%(default)s)")
    result.add_argument(
        "--max-real",
        metavar="N",
        type=int,
        default=5000,
        help="real tiles to look among, at most; as in the evaluation whose judge is wanted (%(default)s)",
    )
    result.add_argument("--assessable-only", action="store_true", help="leave out tiles with a level that is not assessable; likewise")
    result.add_argument(
        "--predictor",
        metavar="DIR",
        type=Path,
        help="folder of a judge that attributegan-evaluate trained, instead of the one of --shards in the cache",
    )
    result.add_argument("--cache", metavar="DIR", type=Path, help="what is known of real tiles (~/.cache/attributegan/evaluation)")
    options_module.add_precision(result)
    result.add_argument("--no-ema", action="store_true", help="the weights as trained, instead of their average (EMA)")
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    result.add_argument("--port", type=int, default=7860, help="port to listen on; 0 takes any free one (%(default)s)")
    result.add_argument(
        "--token-file", metavar="FILE", type=Path, help="has the token that visitors must give; without it, --host makes a new one"
    )
    return result


def _explore(options: argparse.Namespace) -> None:
    if options.demo == (options.model is not None):
        raise ValueError("give one of a run's folder, a checkpoint, an exported generator, or --demo")
    if options.max_real < 1:
        raise ValueError(f"--max-real: {options.max_real} must be at least 1")
    if not options.host:
        raise ValueError("--host: names no address; give one, such as 0.0.0.0 for all of this machine's")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port: {options.port} is not from 0 to 65535")
    given = read_token(options.token_file) if options.token_file else ""
    try:
        from tools.explorer import auth, model, predictions, server
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'attributegan[explore]'") from error
    token = given if given or auth.is_loopback(options.host) else secrets.token_urlsafe(24)
    with server.listen(options.host, options.port) as listening:
        shown = model.load(options.model or DEMO, options.no_ema)
        schema, size = shown.generator.schema, shown.generator.image_size
        tiles = _real_tiles(options, schema, size) if options.shards else None
        if tiles is not None:
            print(f"looking at the real tiles of {options.shards}, which takes minutes the first time", file=sys.stderr, flush=True)
        progress = StageProgress(sys.stderr.isatty())
        reader = predictions.open_reader(schema, tiles, options.predictor, options.cache, progress)
        progress.close()
        port = listening.getsockname()[1]
        app = server.application(server.Explorer(shown, reader, options_module.precision_of(options.precision)), options.host, token, port)
        address = f"http://{auth.in_address(options.host)}:{port}/" + (f"?token={token}" if token and not given else "")
        print(f"{shown.name}: {address}    (Ctrl-C ends it)", flush=True)
        server.serve(app, listening)


def _real_tiles(options: argparse.Namespace, schema: AttributeSchema, size: int) -> Split:
    """The tiles that an evaluation with the same options learns from."""
    from tools.evaluation.data import open_split

    cache = options_module.cache_of(options)
    shards, _, split = open_split(options.shards, options.train, size, options.max_real, options.assessable_only, cache, "--train")
    if differences := schema.difference(shards.schema):
        raise ValueError(f"--shards {shards.location}: does not fit the model: {'; '.join(differences)}")
    return split


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ValueError: not readable, or not fit for a cookie.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path}: can't be read: {error}") from error
    if len(token) < 16 or not token.isascii() or not token.isprintable() or set(token) & set(' ";,\\'):
        raise ValueError(f"--token-file {path}: write at least 16 letters and digits into it, such as `openssl rand -hex 16` gives")
    return token


if __name__ == "__main__":
    sys.exit(main())
