"""Measurements of H&E tiles by image arithmetic: nuclei, stains and sharpness, and levels made of them.

`segment` outlines nuclei, `features` measures a tile, `levels` turns a column of measurements into levels of an attribute, `table` measures
many tiles and can be resumed. scikit-image and scipy are imported inside this package only; `require` says how to install them.
"""

from __future__ import annotations

from importlib.util import find_spec


def require() -> None:
    """Check that the extra `measure` is installed.

    Raises:
        ValueError: it is not; says how to install it.
    """
    if missing := [name for name in ("scipy", "skimage") if find_spec(name) is None]:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install 'attributegan[measure]'")
