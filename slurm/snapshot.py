"""Snapshot of the code, commit, uncommitted changes and packages of a submission: queued and requeued jobs run the submitted code."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from attributegan.utils.layout import BUNDLE, PACKAGES, configs_dir, package_dir

ROOT = Path(__file__).parent.parent


def take(submission: Path) -> Path:
    """Copy the code to ``submission/code`` and write commit.txt, changes.diff and environment.txt.

    Returns:
        the folder to add to PYTHONPATH.
    """
    code = submission / "code"
    for package in PACKAGES:
        shutil.copytree(package_dir(package), code / package, ignore=shutil.ignore_patterns("__pycache__", ".*", BUNDLE, "configs"))
    shutil.copytree(configs_dir(), code / "configs")
    (submission / "environment.txt").write_text(_environment())
    if (ROOT / ".git").exists():
        (submission / "commit.txt").write_text(_git("rev-parse", "HEAD"))
        (submission / "changes.diff").write_text(_git("diff", "HEAD", "--", *PACKAGES) + _untracked())
    return code


def _git(*arguments: str) -> str:
    """Returns the output of git, or its error (no commit yet, a checkout of another user)."""
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"git: {error}\n"
    return result.stdout if result.returncode in (0, 1) else result.stderr


def _untracked() -> str:
    """Returns the untracked files as a diff."""
    names = _git("ls-files", "--others", "--exclude-standard", "--", *PACKAGES).splitlines()
    return "".join(_git("diff", "--no-index", "--", "/dev/null", name) for name in names)


def _environment() -> str:
    """Returns the version of Python and the installed packages, in the format of pip freeze."""
    packages = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return f"# Python {platform.python_version()}, {platform.platform()}, {sys.executable}\n" + "".join(
        f"{line}\n" for line in sorted(packages, key=str.lower)
    )
