"""Imports timm for tests; skips without it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

_kept: list[torch.library.Library] = []  # operators are removed with their library


def timm_or_skip() -> Any:
    """Returns the module timm.

    PyPI's torchvision, which timm imports, is built for CUDA: beside a CPU build of torch it lacks its operators, and its import fails.
    timm calls none of them for the networks of these tests, so that declaring the two that the import looks up is enough.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs the extra `encoders`: pip install 'attributegan[encoders]'")
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    return importlib.import_module("timm")
