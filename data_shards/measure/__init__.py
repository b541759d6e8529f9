"""Measures H&E tiles by classical image processing: nuclei, stains and sharpness, and levels derived from them.

`segment` segments nuclei, `features` measures a tile, `levels` converts measurements to levels of an attribute, `table` measures many tiles
and is resumable. Only this package imports scikit-image and scipy; `require` checks that they are installed.
"""

from __future__ import annotations

from importlib.util import find_spec


def require() -> None:
    """Check that the extra `measure` is installed.

    Raises:
        ValueError: it is not installed; the message contains the pip command.
    """
    if missing := [name for name in ("scipy", "skimage") if find_spec(name) is None]:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install 'attributegan[measure]'")
