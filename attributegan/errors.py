"""Errors that say whether starting again may help; commands turn them into exit statuses (cli.py)."""

from __future__ import annotations


class TransientError(Exception):
    """Transient failure; retrying may succeed. Commands print the message and exit with status 1."""


class PermanentError(RuntimeError):
    """Starting again as before would end in the same error; the cause says which."""


def require(condition: bool, message: str) -> None:
    """ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)
