"""Writes the results of a 2AFC study: answers.csv, a row per choice, and result.json, the statistics. Reads result.json for reports."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attributegan.utils.files import atomic_write
from tools.two_afc import scores
from tools.two_afc.answers import Answers
from tools.two_afc.study import CSV, RESULT, SIDES

FORMAT = 1


def write(answers: Answers) -> Mapping[str, Any]:
    """Write both files into the folder of the study and return the contents of result.json.

    Raises:
        OSError: a file could not be written.
    """
    study, text = answers.study, io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["reader", "pair", *study.schema.names, "real", "chosen", "correct", "seconds", "time"])
    for one in answers.all():
        levels = study.schema.written(study.levels[one.pair]).values()
        rows.writerow([one.reader, one.pair, *levels, one.real, one.chosen, int(one.chosen == one.real), one.seconds, one.time])
    chosen = [one.chosen for one in answers.all()]
    result: dict[str, Any] = {
        "format": FORMAT,
        "study": study.source,
        "sides": {side: chosen.count(side) for side in SIDES},
        **summary(answers),
    }
    for name, data in ((CSV, text.getvalue()), (RESULT, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")):
        with atomic_write(study.folder / name) as stream:
            stream.write(data.encode())
    return result


def summary(answers: Answers, reader: str | None = None) -> Mapping[str, Any]:
    """Return the statistics of one reader, or of all."""
    return scores.summary(answers.study.schema, answers.study.levels, answers.choices(), len(answers.study), reader)


def read(path: Path) -> dict[str, Any]:
    """Read result.json, or that of a study's folder.

    Raises:
        ValueError: not a result of a 2AFC study.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        fits = found["format"] == FORMAT and {"study", "sentence", "all", "readers", "levels"} <= set(found)
    except OSError as error:
        raise ValueError(f"{file}: can't be read ({error.strerror}); give the folder of `attributegan-label 2afc`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a result of `attributegan-label 2afc` ({error})") from error
    if not fits:
        raise ValueError(f"{file}: not a result of `attributegan-label 2afc` in format {FORMAT}")
    return found
