"""Errors that state whether a retry may succeed. Commands map them to exit statuses (cli.py)."""

from __future__ import annotations


class TransientError(Exception):
    """Transient failure; retrying may succeed. Commands print the message and exit with status 1."""


class PermanentError(RuntimeError):
    """Permanent failure; retrying would fail with the same error, which is ``__cause__``. Exit status 3."""


def require(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)
