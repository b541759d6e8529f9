"""Where the packages and `configs/` are: beside `attributegan` in a checkout and in a submission's copy, inside it in a wheel.

A wheel has `launch`, `slurm` and `tools` in ``attributegan/_bundled``, since other packages install folders of the same names.
"""

from __future__ import annotations

from pathlib import Path

BUNDLE = "_bundled"
BUNDLED = ("launch", "slurm", "tools")
PACKAGES = ("attributegan", "data_shards", *BUNDLED)

_ATTRIBUTEGAN = Path(__file__).resolve().parents[1]


def bundled_root() -> Path:
    """The folder to import the packages of `BUNDLED` from."""
    bundled = _ATTRIBUTEGAN / BUNDLE
    return bundled if bundled.is_dir() else _ATTRIBUTEGAN.parent


def package_dir(package: str) -> Path:
    """The folder of one of `PACKAGES`."""
    return (bundled_root() if package in BUNDLED else _ATTRIBUTEGAN.parent) / package


def configs_dir() -> Path:
    """The folder of the files that ship: `train/`, `accelerate/`, `slurm/` and others."""
    in_wheel = _ATTRIBUTEGAN / "configs"
    return in_wheel if in_wheel.is_dir() else _ATTRIBUTEGAN.parent / "configs"
