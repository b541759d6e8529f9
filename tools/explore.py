"""``attributegan-explore``: serves a web page with a slider per attribute and the generated tile.

Owns the command line; the pages are in `tools.explorer`.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attributegan.cli import exit_status, parser
from attributegan.config import DataConfig
from tools import options as options_module
from tools.options import settings_of
from tools.progress import StageProgress

DEMO = Path(__file__).parent / "explorer" / "demo"  # its model card is README.md

if TYPE_CHECKING:  # slow to import; --help must be fast
    from attributegan.attributes import AttributeSchema
    from attributegan.evaluation.reference import Split

EXAMPLES = """\
  attributegan-explore --demo                                           a small generator that is included, of mitotic figures
  attributegan-explore runs/first                                       prints the address to open
  attributegan-explore runs/first --shards shards                       adds nearest real tiles and predicted levels
  attributegan-explore exported                                         a folder written by `attributegan-export generator`
  attributegan-explore runs/first --host 0.0.0.0 --token-file token     reachable from other machines, with a token"""


@dataclass(frozen=True)
class ExploreSettings:
    """Which model to show, next to which real tiles, and where to listen. Fields are the options of the command.

    Raises:
        ValueError: names the option that is wrong.
    """

    model: Path | None = None  # run folder, checkpoint or exported generator
    demo: bool = False  # the included generator
    shards: str | None = None  # shard set with real tiles
    shards_cache: str = ""
    shards_cache_gb: float = DataConfig.cache_gb
    train: str = "train"  # split that the model was trained on
    max_real: int = 5000
    assessable_only: bool = False
    predictor: Path | None = None  # folder of a trained predictor
    cache: Path | None = None  # features and predictors of real tiles
    precision: str = "auto"
    no_ema: bool = False
    host: str = "127.0.0.1"
    port: int = 7860
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if self.demo == (self.model is not None):
            raise ValueError("give either MODEL (a run folder, a checkpoint or an exported generator) or --demo")
        options_module.require_at_least(self, max_real=1)
        check_address(self.host, self.port)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page with ``argv`` (default: ``sys.argv``) until interrupted, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: explore(settings_of(ExploreSettings, options)))


def _parser() -> argparse.ArgumentParser:
    default = ExploreSettings
    result = parser(
        "Serve a web page to explore a model's attributes with sliders, and a quiz. The tiles are synthetic and not for diagnosis.\n"
        "Listens on localhost unless --host is given; other machines then need a token.",
        EXAMPLES,
    )
    result.add_argument(
        "model",
        nargs="?",
        metavar="RUN|CHECKPOINT|EXPORT",
        type=Path,
        help="run folder (uses its latest checkpoint), a checkpoint, or an exported generator",
    )
    result.add_argument(
        "--shards", metavar="DIR", help="shard set with real tiles: shows the nearest ones, and levels predicted from the tile"
    )
    options_module.add_cache(result, "shards-cache")
    result.add_argument(
        "--train", metavar="SPLIT", default=default.train, help="split that the model was trained on (default: %(default)s)"
    )
    result.add_argument("--demo", action="store_true", help="show the included small generator of mitotic figures")
    result.add_argument(
        "--max-real",
        metavar="N",
        type=int,
        default=default.max_real,
        help="maximum number of real tiles; must be that of the evaluation that trained the predictor (default: %(default)s)",
    )
    result.add_argument(
        "--assessable-only", action="store_true", help="skip real tiles with a level that is not assessable, as in the evaluation"
    )
    result.add_argument(
        "--predictor",
        metavar="DIR",
        type=Path,
        help="folder of a predictor trained by attributegan-evaluate (default: the one for --shards in the cache)",
    )
    options_module.add_evaluation_cache(result)
    options_module.add_precision(result)
    options_module.add_no_ema(result)
    add_address(result, default.host, default.port)
    return result


def add_address(parser: argparse.ArgumentParser, host: str, port: int) -> None:
    """Add ``--host``, ``--port`` and ``--token-file`` with these defaults."""
    parser.add_argument("--host", default=host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on; 0 for any free port (default: %(default)s)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="file with the access token (default: a random token if --host is not a loopback address, else none)",
    )


def check_address(host: str, port: int) -> None:
    """Check ``--host`` and ``--port``.

    Raises:
        ValueError: no address, or a port that does not exist.
    """
    if not host:
        raise ValueError("--host: is empty; give an address, such as 0.0.0.0 for all interfaces of this machine")
    if not 0 <= port <= 65535:
        raise ValueError(f"--port: {port} is not from 0 to 65535")


def explore(settings: ExploreSettings) -> None:
    """Load the model and serve the pages until interrupted.

    Raises:
        ValueError: a model, shard set, predictor or address that can't be used.
    """
    given = read_token(settings.token_file) if settings.token_file else ""
    try:
        from tools.explorer import auth, model, predictions, server
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'attributegan[explore]'") from error
    token = given if given or auth.is_loopback(settings.host) else secrets.token_urlsafe(24)
    with server.listen(settings.host, settings.port) as listening:
        shown = model.load(settings.model or DEMO, settings.no_ema)
        schema, size = shown.generator.schema, shown.generator.image_size
        tiles = _real_tiles(settings, settings.shards, schema, size) if settings.shards else None
        progress = StageProgress(sys.stderr.isatty())
        analyzer = predictions.open_analyzer(shown, tiles, settings.predictor, settings.cache, progress)
        progress.close()
        port = listening.getsockname()[1]
        explorer = server.Explorer(shown, analyzer, options_module.resolve_precision(settings.precision))
        app = server.application(explorer, settings.host, token, port)
        address = f"http://{auth.host_to_open(settings.host)}:{port}/" + (f"?token={token}" if token and not given else "")
        print(f"{shown.name}: {address}    (Ctrl-C to stop)", flush=True)
        server.serve(app, listening)


def _real_tiles(settings: ExploreSettings, location: str, schema: AttributeSchema, size: int) -> Split:
    """Return the real tiles that an evaluation with the same options trains its predictor on."""
    from tools.evaluation.data import open_split

    cache = options_module.open_cache(settings)
    shards, _, split = open_split(location, settings.train, size, settings.max_real, settings.assessable_only, cache, "--train")
    if differences := schema.difference(shards.schema):
        raise ValueError(f"--shards {shards.location}: does not fit the model: {'; '.join(differences)}")
    print(f"Extracting features of the real tiles of {shards.location}; takes minutes the first time", file=sys.stderr, flush=True)
    return split


def read_token(path: Path) -> str:
    """Read the access token from a file.

    Raises:
        ValueError: the file is not readable, or the token is too short or can't be sent as a cookie.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path}: can't be read: {error}") from error
    if len(token) < 16 or not token.isascii() or not token.isprintable() or set(token) & set(' ";,\\'):
        raise ValueError(
            f"--token-file {path}: the token needs at least 16 letters and digits, such as the output of `openssl rand -hex 16`"
        )
    return token


if __name__ == "__main__":
    sys.exit(main())
