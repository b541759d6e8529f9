"""Files of shard sets that lie elsewhere: which places are remote, the address of a file there, and its bytes.

Everything goes through `webdataset.gopen`. Its own openers for ``http(s)``, ``gs`` and ``hf`` start programs without a time limit, put
tokens on their command lines and hide half transfers, and ``s3`` it doesn't know, so its table of openers gets ours. Owns no retries and no
checksums; those are in cache.py.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import shlex
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:  # brings torch with it
    from webdataset.gopen import Pipe


SCHEMES = ("http", "https", "s3", "gs", "hf", "pipe")
CHUNK = 1 << 20
STALL_S = 60.0  # without a byte, after which a transfer is given up
LATER = (408, 425, 429)  # the answers below 500 that ask to come again


class StoreRejected(Exception):
    """The store answered, and will answer the same when it is asked again: no such file, no right to it, a program that is missing."""


def is_remote(location: str) -> bool:
    return location.partition(":")[0] in SCHEMES and ":" in location


def check(location: str) -> None:
    """ValueError when ``place`` can't be a remote set."""
    if location.startswith("pipe:") and "{}" not in location:
        raise ValueError(
            f"data.shards: {location}: has no {{}}, which stands for the name of the file to write to the standard output, "
            "as in 'pipe:ssh host cat /data/shards/{}'"
        )


def address(location: str, name: str) -> str:
    """The URL of file ``name`` of the set at ``place``."""
    if location.startswith("pipe:"):
        return location.replace("{}", shlex.quote(name))
    base, question, query = location.partition("?") if location.startswith("http") else (location, "", "")
    return f"{base.rstrip('/')}/{name if location.startswith(('s3:', 'gs:')) else urllib.parse.quote(name)}{question}{query}"


def redact(location: str) -> str:
    """``place`` for people and logs: without what may be a secret, such as the signature in a query."""
    if not location.startswith(("http:", "https:")):
        return location
    parts = urllib.parse.urlsplit(location)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def chunks(url: str) -> Iterator[bytes]:
    """The bytes of a file, piece by piece.

    Raises:
        Refused: it can't be had.
        OSError: the transfer failed, stalled or was cut off, as far as that can be told without knowing the file.
    """
    from webdataset.gopen import Pipe, gopen, gopen_schemes

    gopen_schemes |= {"http": _http, "https": _http, "hf": _hf, "s3": _s3, "gs": _gs, "pipe": _pipe}
    try:
        stream = gopen(url, "rb")
        if isinstance(stream, Pipe):
            yield from _output(stream)
            return
        with closing(stream):
            while data := stream.read(CHUNK):
                yield data
            if getattr(stream, "length", None):
                raise OSError(f"cut off {stream.length:,} bytes before the end")
    except http.client.InvalidURL as error:
        raise StoreRejected(str(error).partition(".")[0]) from error
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error


def _output(pipe: Pipe) -> Iterator[bytes]:
    """What a program writes, up to its end in good order."""
    ready = select.poll()
    ready.register(pipe.stream, select.POLLIN)
    try:
        while True:
            if not ready.poll(1000 * STALL_S):
                raise TimeoutError(f"no byte for {STALL_S:g} s")
            if not (data := os.read(pipe.stream.fileno(), CHUNK)):
                break
            yield data
        if status := pipe.proc.wait(STALL_S):
            said = {126: " (no permission)", 127: " (no such program)"}.get(status, "")
            raise (StoreRejected if said else OSError)(f"the command ended with status {status}{said}")
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the command has not ended {STALL_S:g} s after its last byte") from error
    finally:
        if pipe.proc.poll() is None:
            os.killpg(pipe.proc.pid, signal.SIGKILL)
        pipe.proc.wait()
        pipe.stream.close()


# Openers, called by `webdataset.gopen` with (url, mode, buffer size).


def _http(url: str, mode: str = "rb", bufsize: int = -1) -> BinaryIO:
    return _request(urllib.request.Request(url))  # noqa: S310  # `gopen` gives it http and https alone


def _request(request: urllib.request.Request) -> BinaryIO:
    try:
        return cast(BinaryIO, urllib.request.urlopen(request, timeout=STALL_S))  # noqa: S310  # as above
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in LATER:
            raise
        raise StoreRejected(f"HTTP {error.code} {error.reason}") from error


def _hf(url: str, mode: str = "rb", bufsize: int = -1) -> BinaryIO:
    """A file of a repository on the Hugging Face hub, ``hf://datasets/OWNER/NAME[@REVISION]/PATH``."""
    from huggingface_hub import get_token, hf_hub_url

    parts = re.fullmatch(r"hf://(?:(dataset|model|space)s/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if parts is None:
        raise StoreRejected("write hf://datasets/OWNER/NAME/FOLDER, with @REVISION after the name if wanted")
    kind, repository, revision, path = parts.groups()
    file = hf_hub_url(repository, urllib.parse.unquote(path), repo_type=kind, revision=revision)
    request = urllib.request.Request(file)  # noqa: S310  # the hub's, https
    if token := get_token():  # for the hub, not for the store that it sends us to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return _request(request)


class _S3Stream:
    """The body of an S3 object, whose errors are OSErrors."""

    def __init__(self, url: str) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.body = self._told(lambda: _s3_client(os.getpid()).get_object(Bucket=bucket, Key=key)["Body"])

    def read(self, size: int) -> bytes:
        return self._told(lambda: self.body.read(size))

    def close(self) -> None:
        self.body.close()

    @staticmethod
    def _told(do: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError, IncompleteReadError

        try:
            return do()
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            raise (OSError if status >= 500 or status in LATER else StoreRejected)(str(error)) from error
        except (EndpointConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise StoreRejected(str(error)) from error


@lru_cache(maxsize=1)
def _s3_client(process: int) -> Any:
    """The client of one process: its connections must not be shared with a fork."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise StoreRejected("s3:// needs boto3: pip install 'attributegan[s3]'") from error
    session = boto3.session.Session()
    signature = {} if session.get_credentials() else {"signature_version": UNSIGNED}  # a public bucket
    limits = Config(connect_timeout=STALL_S, read_timeout=STALL_S, retries={"total_max_attempts": 1}, **signature)
    return session.client("s3", config=limits)


def _s3(url: str, mode: str = "rb", bufsize: int = -1) -> Any:
    return _S3Stream(url)


def _gs(url: str, mode: str = "rb", bufsize: int = -1) -> Pipe:
    return _program(["gsutil", "cat", url], shell=False)


def _pipe(url: str, mode: str = "rb", bufsize: int = -1) -> Pipe:
    """The user's own command; `address` has quoted the file name in it."""
    return _program(url.removeprefix("pipe:"), shell=True)  # noqa: S604  # it is a command line that the user gave to be run


def _program(command: str | list[str], shell: bool) -> Pipe:
    from webdataset.gopen import Pipe

    try:
        return Pipe(command, mode="rb", shell=shell, bufsize=0, stdin=subprocess.DEVNULL, start_new_session=True)
    except FileNotFoundError as error:
        raise StoreRejected(f"the program {error.filename} is not installed") from error
