"""``attributegan-evaluate compare``: writes the results of several evaluations to one page.

Results with different features or real tiles are not comparable; they are shown in separate groups with a warning. If the same models were
evaluated with several feature networks, the page says whether their ranking agrees.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attributegan import cli

EXAMPLES = """\
  attributegan-evaluate compare report-a report-b report-c --out comparison.html
  attributegan-evaluate compare report-*-lite1 report-*-random --out comparison.html     does the ranking depend on the features?"""


def add(commands: Any) -> None:
    """Add the command to those of ``attributegan-evaluate``."""
    parser = cli.command(commands, "compare", "compare results", "Write the results of several evaluations to one HTML page.", EXAMPLES)
    parser.add_argument("results", metavar="REPORT", nargs="+", type=Path, help="report folder, or its result.json")
    parser.add_argument("--out", metavar="FILE", required=True, type=Path, help="HTML page to write")
    parser.set_defaults(work=lambda options: compare(options.results, options.out))


def compare(paths: Sequence[Path], out: Path) -> None:
    """Write the page.

    Raises:
        ValueError: a path that is not a result, or a page that can't be written.
    """
    from attributegan.utils.files import atomic_write
    from attributegan.utils.html_page import Section, to_html
    from tools.evaluation import ranking, report

    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in paths:
        found = read(path)
        groups.setdefault(json.dumps([found["features"], found["data"]["identity"]], sort_keys=True), []).append((_label(path), found))
    sections = []
    if len(groups) > 1:
        text = f"Not comparable: the results have different features or real tiles. Compare only within each of the {len(groups)} groups."
        print(f"warning: {text}", file=sys.stderr)
        sections.append(Section("Not comparable", text))
    for section in ranking.sections([member for members in groups.values() for member in members]):
        print(section.text)
        sections.append(section)
    for number, members in enumerate(groups.values(), start=1):
        rows = _rows(members)
        features, data = members[0][1]["features"], members[0][1]["data"]
        text = f"Features {features['name']} ({features['version']}) at {features['size']} pixels; real tiles from {data['shards']}. "
        text += "".join(dict.fromkeys(report.trained_text(found) for _, found in members)).rstrip()
        counts = {json.dumps(found["settings"], sort_keys=True) for _, found in members}
        text += (
            " The settings differ, so FID, precision, recall, density and coverage may use different numbers of tiles."
            if len(counts) > 1
            else ""
        )
        title = f"Group {number}" if len(groups) > 1 else "Results"
        sections.append(Section(title, text, [report.summary(rows), *report.control(rows), *report.leaks(rows)]))
    page = to_html("Comparison of evaluations", "Generated tiles compared with real tiles.", sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as stream:
            stream.write(page.encode())
    except OSError as error:
        raise ValueError(f"--out: {out} is not writable ({error.strerror})") from error
    print(out)


def _rows(members: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the real-data row once, then the rows of each result, prefixed with the name of its folder."""
    real_data_rows = [row for row in members[0][1]["rows"] if row["kind"] == "ceiling"]
    return real_data_rows + [
        row | {"name": f"{label}: {row['name']}"} for label, found in members for row in found["rows"] if row["kind"] != "ceiling"
    ]


def _label(path: Path) -> str:
    folder = path.parent if path.is_file() else path
    return folder.resolve().name


def read(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: not a result, or of an unsupported format version.
    """
    from attributegan.evaluation.scores import FORMAT

    file = path if path.is_file() else path / "result.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        version = found["format"]
    except OSError as error:
        raise ValueError(f"{file}: can't be read: {error.strerror}; give a folder with the result.json of attributegan-evaluate") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of attributegan-evaluate ({error}); give a folder with a result.json") from error
    if version != FORMAT:
        raise ValueError(f"{file}: has format {version}, but this version reads only format {FORMAT}; run attributegan-evaluate again")
    return found
