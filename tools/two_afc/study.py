"""The pairs of a 2AFC study in a folder: study.json, and a real and a generated tile of each pair as PNG of one size.

The folder is complete or absent. Its pictures do not change, so that interrupted readers continue with the same pairs. The order of the
pairs and the side of the real tile are hashes of the seed, the reader and the pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan.attributes import AttributeSchema
from attributegan.utils import files
from tools.labeler.queue import uniform

FORMAT = 1
STUDY, ANSWERS, CSV, RESULT = "study.json", "answers.jsonl", "answers.csv", "result.json"
SIDES = ("left", "right")
KINDS = ("real", "generated")


@dataclass(frozen=True)
class Study:
    """The pairs of a study.

    Args:
        folder: of the study.
        schema: the attributes.
        levels: levels of each pair, in the order of the attributes.
        source: what the pairs were made of: ``generated``, ``images`` (that the model was trained on; None for tile sets), ``shards``,
            ``split``, ``pairs``, ``seed`` and ``image_size``.
        digest: SHA-256 of study.json.
    """

    folder: Path
    schema: AttributeSchema
    levels: Sequence[Sequence[int]]
    source: Mapping[str, Any]
    digest: str

    def __len__(self) -> int:
        return len(self.levels)

    def order(self, reader: str) -> list[int]:
        """Return the pairs in the order in which a reader sees them."""
        return sorted(range(len(self)), key=lambda pair: self._uniform("order", reader, pair))

    def real_side(self, reader: str, pair: int) -> str:
        """Return the side of the real tile, left or right with equal probability."""
        return SIDES[self._uniform("side", reader, pair) < 0.5]

    def picture(self, reader: str, pair: int, side: str) -> Path:
        """Return the file of the tile that a reader sees on a side of a pair."""
        return self.folder / KINDS[side != self.real_side(reader, pair)] / file_name(pair)

    def _uniform(self, purpose: str, reader: str, pair: int) -> float:
        return uniform(self.source["seed"], purpose, f"{reader.casefold()}/{pair}")


def file_name(pair: int) -> str:
    """Return the name of a pair's file in the folders ``real`` and ``generated``."""
    return f"{pair:04d}.png"


def write(folder: Path, schema: AttributeSchema, levels: Sequence[Sequence[int]], source: Mapping[str, Any], pngs: Any) -> None:
    """Write a new study, complete or not at all.

    Args:
        pngs: iterable of (real, generated), the encoded tiles of each pair.

    Raises:
        ValueError: the folder can't be created.
    """
    tree = {"format": FORMAT, **source, "attributes": schema.to_dict(), "levels": [list(map(int, level_A)) for level_A in levels]}
    with files.atomic_path(folder) as tmp_folder:
        for kind in KINDS:
            (tmp_folder / kind).mkdir(parents=True)
        for pair, encoded in enumerate(pngs):
            for kind, data in zip(KINDS, encoded, strict=True):
                (tmp_folder / kind / file_name(pair)).write_bytes(data)
        (tmp_folder / STUDY).write_text(json.dumps(tree, indent=1, ensure_ascii=False), encoding="utf-8")


def read(folder: Path) -> Study:
    """Read a study.

    Raises:
        ValueError: no study, damaged, or pictures are missing.
    """
    path = folder / STUDY
    try:
        data = path.read_bytes()
        tree = json.loads(data)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}, this version reads {FORMAT}")
        schema = AttributeSchema.from_dict(tree["attributes"], str(path))
        source = {name: tree[name] for name in ("generated", "images", "shards", "split", "pairs", "seed", "image_size")}
        levels = tree["levels"]
        if len(levels) != source["pairs"] or any(len(level_A) != len(schema.names) for level_A in levels):
            raise ValueError("levels do not fit the pairs and attributes")
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a study of this command ({error}); restore it, or use another --out") from error
    pictures = (folder / kind / file_name(pair) for kind in KINDS for pair in range(len(levels)))
    if missing := [file for file in pictures if not file.is_file()]:
        raise ValueError(f"{missing[0]}: is missing; restore the folder, or use another --out")
    return Study(folder, schema, levels, source, hashlib.sha256(data).hexdigest())
