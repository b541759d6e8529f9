"""``attributegan-label 2afc``: makes a study if it is new, and serves its pages until interrupted."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from attributegan.cli import exit_status
from tools.explore import read_token
from tools.options import settings_of
from tools.two_afc.options import StudySettings, parser_2afc

if TYPE_CHECKING:  # slow to import; --help must be fast
    from tools.two_afc.answers import Answers


def main(argv: Sequence[str]) -> int:
    """Serve the pages until interrupted, and return the exit status."""
    options = parser_2afc().parse_args(argv)
    return exit_status(lambda: run(settings_of(StudySettings, options)))


def run(settings: StudySettings) -> None:
    """Make the study if it is new, and serve its pages until interrupted.

    Raises:
        ValueError: tiles, a study, answers or an address that can't be used.
    """
    try:
        from tools.explorer import listening
        from tools.two_afc import results, study
        from tools.two_afc.answers import Answers
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'attributegan[explore]'") from error
    given = read_token(settings.token_file) if settings.token_file else ""
    if settings.generated is not None:
        _make(settings)
    opened = study.read(settings.out)
    with closing(Answers(opened)) as answers:
        results.write(answers)  # answers that a killed process had not written
        if not settings.no_page:
            with listening.listen(settings.host, settings.port) as listener:
                _serve(settings, answers, listener, given)
        print(f"{settings.out}: {results.write(answers)['sentence']}", flush=True)


def _make(settings: StudySettings) -> None:
    """Make a new study; an existing one must have the same settings.

    Raises:
        ValueError: a study of other settings, or another folder.
    """
    from attributegan.utils.files import check_new_folder, require_writable
    from tools.two_afc import study

    if (settings.out / study.STUDY).is_file():
        source = study.read(settings.out).source
        given = (settings.split, settings.seed, _location(str(settings.generated)), _location(str(settings.shards)))
        if given != (source["split"], source["seed"], _location(source["generated"]), _location(source["shards"])):
            was = f"{source['generated']} and {source['shards']}"
            raise ValueError(f"--out: {settings.out} has a study of other tiles ({was}); give only --out to resume it")
        print(f"{settings.out}: resuming the study of {source['generated']} with {source['pairs']:,} pairs", flush=True)
        return
    check_new_folder(settings.out)
    require_writable(settings.out, "--out")
    from tools.two_afc.build import build

    build(settings)


def _location(path: str) -> str:
    from data_shards.storage import stores

    return stores.redact(path) if stores.is_remote(path) else os.path.abspath(path)


def _serve(settings: StudySettings, answers: Answers, listener: socket.socket, given: str) -> None:
    from tools.explorer import auth
    from tools.explorer.listening import serve
    from tools.two_afc.app import application

    token = given if given or auth.is_loopback(settings.host) else secrets.token_urlsafe(24)
    port = listener.getsockname()[1]
    address = f"http://{auth.host_to_open(settings.host)}:{port}/" + (f"?token={token}" if token and not given else "")
    print(f"{len(answers.study):,} pairs of {settings.out}: {address}    (Ctrl-C to stop)", flush=True)
    serve(application(answers, settings.host, token, port), listener)
