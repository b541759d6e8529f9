"""``attributegan-evaluate compare``: results of several evaluations on one page.

Results of other features or other real tiles are shown apart, and it is said that they don't compare.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attributegan import cli

EXAMPLES = """\
  attributegan-evaluate compare report-a report-b report-c --out comparison.html"""


def add(commands: Any) -> None:
    """Add the command ``compare``."""
    parser = cli.command(commands, "compare", "results side by side", "Set results of evaluations side by side.", EXAMPLES)
    parser.add_argument("results", metavar="REPORT", nargs="+", type=Path, help="folder of a report, or its result.json")
    parser.add_argument("--out", metavar="FILE", required=True, type=Path, help="page to write, ending in .html")
    parser.set_defaults(work=lambda options: compare(options.results, options.out))


def compare(paths: Sequence[Path], out: Path) -> None:
    """Write the page.

    Raises:
        ValueError: a path that is no result, or a page that can't be written.
    """
    from attributegan.utils.files import atomic_write
    from attributegan.utils.html_page import Section, to_html
    from tools.evaluation import report

    families: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in paths:
        found = read(path)
        families.setdefault(json.dumps([found["features"], found["data"]["identity"]], sort_keys=True), []).append((_label(path), found))
    sections = []
    if len(families) > 1:
        text = f"Not comparable: these results are of other features or other real tiles, {len(families)} kinds. Compare within a kind."
        print(f"warning: {text}", file=sys.stderr)
        sections.append(Section("Not comparable", text))
    for number, members in enumerate(families.values(), start=1):
        rows = _rows(members)
        features, data = members[0][1]["features"], members[0][1]["data"]
        text = f"Features {features['name']} ({features['version']}) at {features['size']} pixels; real tiles of {data['shards']}."
        counts = {json.dumps(found["settings"], sort_keys=True) for _, found in members}
        text += " The settings differ, so that FID and what follows it may be of other counts." if len(counts) > 1 else ""
        title = f"Kind {number}" if len(families) > 1 else "Side by side"
        sections.append(Section(title, text, [report.glance(rows), *report.control(rows), *report.leaks(rows)]))
    page = to_html("Comparison of evaluations", "Tiles made by models, measured against real ones.", sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as stream:
            stream.write(page.encode())
    except OSError as error:
        raise ValueError(f"--out: {out} can't be written ({error.strerror})") from error
    print(out)


def _rows(members: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The ceiling once, then the rows of each result under the name of its folder."""
    real_data_rows = [row for row in members[0][1]["rows"] if row["kind"] == "ceiling"]
    return real_data_rows + [
        row | {"name": f"{label}: {row['name']}"} for label, found in members for row in found["rows"] if row["kind"] != "ceiling"
    ]


def _label(path: Path) -> str:
    folder = path.parent if path.is_file() else path
    return folder.resolve().name


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is none, or of another version.
    """
    from attributegan.evaluation.scores import FORMAT

    file = path if path.is_file() else path / "result.json"
    try:
        found = json.loads(file.read_text())
        version = found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no result of an evaluation ({error}); give a folder that has a result.json") from error
    if version != FORMAT:
        raise ValueError(f"{file}: of format {version}; this version reads {FORMAT}")
    return found
