"""Inception-v3 with the weights of FID (``--features inception``), from a file of the user; nothing is downloaded.

Owns the network and the search for its weights. Resizing and normalisation are in `attributegan.metrics.features`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299
CLASSES = 1008  # of the weights' classifier, which is loaded but not used
STATE_DICTS = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")  # torch-fidelity, pytorch-fid
SCRIPT = "inception-2015-12-05.pt"  # clean-fid, TorchScript


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU. State-dict names are torchvision's."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """Averages 3 x 3 neighbours without counting the padding, which FID's network differs in from torchvision's."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _A(nn.Module):
    """35 x 35 (Szegedy et al., CVPR 2016, fig. 5)."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64)
        self.branch5x5_1, self.branch5x5_2 = _Conv(inputs, 48), _Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = _Conv(inputs, 64), _Conv(64, 96, 3), _Conv(96, 96, 3)
        self.branch_pool = _Conv(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average(x))], dim=1)


class _B(nn.Module):
    """35 x 35 to 17 x 17 (fig. 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Conv(288, 384, 3, 2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(288, 64), _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], dim=1)


class _C(nn.Module):
    """17 x 17, with 7 x 7 convolutions factorised (fig. 6)."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(768, 192)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = _Conv(768, inner), _Conv(inner, inner, row), _Conv(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(768, inner), _Conv(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(inner, inner, row), _Conv(inner, inner, column)
        self.branch7x7dbl_5 = _Conv(inner, 192, row)
        self.branch_pool = _Conv(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], dim=1)


class _D(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(768, 192), _Conv(192, 320, 3, 2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(768, 192), _Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = _Conv(192, 192, (7, 1)), _Conv(192, 192, 3, 2, same=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, 2)], dim=1)


class _E(nn.Module):
    """8 x 8, with branches that split (fig. 7). FID's network has a maximum, not an average, in the last block."""

    def __init__(self, inputs: int, average: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = _Conv(inputs, 320)
        self.branch3x3_1, self.branch3x3_2a, self.branch3x3_2b = _Conv(inputs, 384), _Conv(384, 384, row), _Conv(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 448), _Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, row), _Conv(384, 384, column)
        self.branch_pool = _Conv(inputs, 192)
        self.pool = _average if average else _largest

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Inception-v3 (Szegedy et al., CVPR 2016) as FID uses it: images_BCHW of 299 pixels in [-1, 1] -> (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, 2, same=False), _Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Conv(64, 80), _Conv(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _C(128), _C(160), _C(160), _C(192)
        self.Mixed_7a = _D()
        self.Mixed_7b, self.Mixed_7c = _E(1280, average=True), _E(2048, average=False)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images_BCHW))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))))
        return self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))


class _Script(nn.Module):
    """The layers of clean-fid's TorchScript file, without its resizing."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW.contiguous()).flatten(1)


def load(path: Path) -> nn.Module:
    """Loads the network from a state dict or a TorchScript file.

    Raises:
        ValueError: unreadable, other weights, or a hash that differs from the one in the file's name.
    """
    _check_hash(path)
    try:
        if _is_script(path):
            script = torch.jit.load(path, map_location="cpu")
            if not hasattr(script, "layers"):
                raise ValueError(f"{path}: a TorchScript file without `layers`; expected {SCRIPT}")
            return _Script(script.layers).eval()
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = Inception()
        network.load_state_dict(_with_counters(state, network))
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not the weights of FID's Inception-v3: {error}") from error
    return network.eval()


def _with_counters(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Adds the batch counters of batch norm, which old files don't have and inference doesn't use."""
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    return counters | state


def find() -> Path:
    """Returns the cached weights.

    Raises:
        ValueError: none found; lists the searched files.
    """
    places = candidates()
    for path in places:
        if path.is_file() and _is_trusted(path):
            return path
    listed = "".join(f"\n  {path}" for path in places)
    raise ValueError(
        "--features inception: no weights found. They are not downloaded: give a file with `--features inception:FILE`, or put "
        f"torch-fidelity's, pytorch-fid's or clean-fid's file at one of:{listed}"
    )


def candidates() -> list[Path]:
    """Returns where torch-fidelity, pytorch-fid (torch hub's checkpoints) and clean-fid (temporary folder) keep their weights."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    clean_fid = Path(os.sep, "tmp") if os.name == "posix" else Path()
    return [hub / name for name in (*STATE_DICTS, SCRIPT)] + [
        folder / SCRIPT for folder in dict.fromkeys((clean_fid, Path(tempfile.gettempdir())))
    ]


def _is_trusted(path: Path) -> bool:
    """Whether the file belongs to this user or root: anyone can write to the temporary folder."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _check_hash(path: Path) -> None:
    """Compares the SHA-256 with the prefix in the name, which torch hub adds to the names of its files."""
    named = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if not named:
        return
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(named[1]):
        raise ValueError(f"{path}: corrupted or incomplete: SHA-256 is {digest[:8]}…, expected {named[1]}…; download it again")
