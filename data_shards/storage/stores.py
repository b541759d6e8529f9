"""Reads files of remote shard sets: which locations are remote, the URL of a file, and its bytes.

All access goes through `webdataset.gopen`. Its openers for ``http(s)``, ``gs`` and ``hf`` start programs without a timeout, put tokens on
their command lines and hide partial transfers, and it has none for ``s3``, so they are replaced here. Retries and checksums are in
cache.py.
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

if TYPE_CHECKING:  # imports torch
    from webdataset.gopen import Pipe


SCHEMES = ("http", "https", "s3", "gs", "hf", "pipe")
CHUNK = 1 << 20
STALL_S = 60.0  # timeout without any byte received
RETRYABLE = (408, 425, 429)  # HTTP status codes below 500 that are worth a retry


class StoreRejected(Exception):
    """The store rejected the request and a retry won't help: no such file, no permission, or a missing program."""


def is_remote(location: str) -> bool:
    """Returns whether a location is a URL or command instead of a folder."""
    return location.partition(":")[0] in SCHEMES and ":" in location


def check(location: str) -> None:
    """Check the form of a remote location.

    Raises:
        ValueError: a ``pipe:`` command without ``{}``.
    """
    if location.startswith("pipe:") and "{}" not in location:
        raise ValueError(
            f"data.shards: {location}: no {{}}, the placeholder for the name of the file to write to standard output, "
            "as in 'pipe:ssh host cat /data/shards/{}'"
        )


def address(location: str, name: str) -> str:
    """Returns the URL of file ``name`` of the set at ``location``."""
    if location.startswith("pipe:"):
        return location.replace("{}", shlex.quote(name))
    base, question, query = location.partition("?") if location.startswith("http") else (location, "", "")
    return f"{base.rstrip('/')}/{name if location.startswith(('s3:', 'gs:')) else urllib.parse.quote(name)}{question}{query}"


def redact(location: str) -> str:
    """Returns ``location`` for logs and messages, without possible secrets such as the signature in a query."""
    if not location.startswith(("http:", "https:")):
        return location
    parts = urllib.parse.urlsplit(location)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def chunks(url: str) -> Iterator[bytes]:
    """Yields the bytes of a file in chunks.

    Raises:
        StoreRejected: the file is unavailable.
        OSError: the transfer failed, stalled or was truncated, as far as detectable without the checksum.
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
                raise OSError(f"truncated {stream.length:,} bytes before the end")
    except http.client.InvalidURL as error:
        raise StoreRejected(str(error).partition(".")[0]) from error
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error


def _output(pipe: Pipe) -> Iterator[bytes]:
    """Yields the output of a program and checks its exit status."""
    ready = select.poll()
    ready.register(pipe.stream, select.POLLIN)
    try:
        while True:
            if not ready.poll(1000 * STALL_S):
                raise TimeoutError(f"stalled: no data for {STALL_S:g} s")
            if not (data := os.read(pipe.stream.fileno(), CHUNK)):
                break
            yield data
        if status := pipe.proc.wait(STALL_S):
            reason = {126: " (no permission)", 127: " (no such program)"}.get(status, "")
            raise (StoreRejected if reason else OSError)(f"the command failed with exit status {status}{reason}")
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"the command did not exit within {STALL_S:g} s of closing its output") from error
    finally:
        if pipe.proc.poll() is None:
            os.killpg(pipe.proc.pid, signal.SIGKILL)
        pipe.proc.wait()
        pipe.stream.close()


# Openers, called by `webdataset.gopen` with (url, mode, buffer size).


def _http(url: str, mode: str = "rb", bufsize: int = -1) -> BinaryIO:
    return _request(urllib.request.Request(url))  # noqa: S310  # `gopen` calls it for http and https only


def _request(request: urllib.request.Request) -> BinaryIO:
    try:
        return cast(BinaryIO, urllib.request.urlopen(request, timeout=STALL_S))  # noqa: S310  # as above
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in RETRYABLE:
            raise
        raise StoreRejected(f"HTTP {error.code} {error.reason}") from error


def _hf(url: str, mode: str = "rb", bufsize: int = -1) -> BinaryIO:
    """Open a file of a repository on the Hugging Face Hub, ``hf://datasets/OWNER/NAME[@REVISION]/PATH``."""
    from huggingface_hub import get_token, hf_hub_url

    parts = re.fullmatch(r"hf://(?:(dataset|model|space)s/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if parts is None:
        raise StoreRejected("invalid URL; use hf://datasets/OWNER/NAME[@REVISION]/FOLDER")
    kind, repository, revision, path = parts.groups()
    file = hf_hub_url(repository, urllib.parse.unquote(path), repo_type=kind, revision=revision)
    request = urllib.request.Request(file)  # noqa: S310  # https URL of the Hub
    if token := get_token():  # for the Hub only, not for the store that it redirects to
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return _request(request)


class _S3Stream:
    """The body of an S3 object; errors are raised as OSError or StoreRejected."""

    def __init__(self, url: str) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.body = self._translated(lambda: _s3_client(os.getpid()).get_object(Bucket=bucket, Key=key)["Body"])

    def read(self, size: int) -> bytes:
        data: bytes = self._translated(lambda: self.body.read(size))
        return data

    def close(self) -> None:
        self.body.close()

    @staticmethod
    def _translated(call: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError, IncompleteReadError

        try:
            return call()
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            raise (OSError if status >= 500 or status in RETRYABLE else StoreRejected)(str(error)) from error
        except (EndpointConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise StoreRejected(str(error)) from error


@lru_cache(maxsize=1)
def _s3_client(process: int) -> Any:
    """Returns the client of this process; connections must not be shared across forks."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise StoreRejected("s3:// needs boto3: pip install 'attributegan[s3]'") from error
    session = boto3.session.Session()
    signature = {} if session.get_credentials() else {"signature_version": UNSIGNED}  # for public buckets
    limits = Config(connect_timeout=STALL_S, read_timeout=STALL_S, retries={"total_max_attempts": 1}, **signature)
    return session.client("s3", config=limits)


def _s3(url: str, mode: str = "rb", bufsize: int = -1) -> Any:
    return _S3Stream(url)


def _gs(url: str, mode: str = "rb", bufsize: int = -1) -> Pipe:
    return _program(["gsutil", "cat", url], shell=False)


def _pipe(url: str, mode: str = "rb", bufsize: int = -1) -> Pipe:
    """Run the user's command; `address` has quoted the file name."""
    return _program(url.removeprefix("pipe:"), shell=True)  # noqa: S604  # the user's own command line


def _program(command: str | list[str], shell: bool) -> Pipe:
    from webdataset.gopen import Pipe

    try:
        return Pipe(command, mode="rb", shell=shell, bufsize=0, stdin=subprocess.DEVNULL, start_new_session=True)
    except FileNotFoundError as error:
        raise StoreRejected(f"the program {error.filename} is not installed") from error
