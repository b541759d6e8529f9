"""``attributegan-study``: trains recipes side by side on phantoms, evaluates each and writes one table. Runs what is missing.

A suite is a YAML file such as configs/studies/recipes.yaml: ``common`` options, and ``studies`` by name, each with the ``base`` that it
starts from (a file of configs/train) and its own ``change``. Training and evaluating are the commands that users type.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan.cli import exit_status, parser

EXAMPLES = """\
  attributegan-study configs/studies/recipes.yaml --out study                                  all of them, 40,000 images each
  attributegan-study configs/studies/recipes.yaml --out study --only published paper controlled --images 160000 --seeds 3
  attributegan-study configs/studies/recipes.yaml --out study --table                          what is there so far
Start it again after any stop: finished studies are not repeated, and more images go on from where a run is."""

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), run what is missing, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: study(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("Train the recipes of a suite on phantom tiles, evaluate them, and write DIR/table.md and table.json.", EXAMPLES)
    result.add_argument("suite", metavar="SUITE.yaml", type=Path, help="the recipes")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the runs and the table")
    result.add_argument("--only", metavar="STUDY", nargs="+", default=[], help="names of studies; all by default")
    result.add_argument("--images", metavar="N", type=int, default=40_000, help="length of each run (%(default)s)")
    result.add_argument("--seeds", metavar="N", type=int, default=1, help="runs of each study, with seeds from 0 on (%(default)s)")
    result.add_argument("--shards", metavar="DIR", type=Path, help="shard set to train on; by default phantoms are made in DIR/shards")
    result.add_argument("--tiles", metavar="N", type=int, default=4096, help="phantoms to make, a part of them held out (%(default)s)")
    result.add_argument(
        "--features", metavar="NETWORK", default="efficientnet-lite0", help="of KID; see attributegan-evaluate (%(default)s)"
    )
    result.add_argument("--table", action="store_true", help="write the table of what is there, and run nothing")
    return result


@dataclass(frozen=True)
class Run:
    """One study with one seed."""

    name: str
    seed: int
    folder: Path
    options: dict[str, Any]

    def report(self, images: int) -> Path:
        return self.folder / f"report-{images:012d}"

    def result(self, images: int) -> dict[str, Any] | None:
        """What the evaluation said, once there is one."""
        file = self.report(images) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None


def study(options: argparse.Namespace) -> None:
    """Run what is missing, study by study, and write the table after each.

    Raises:
        ValueError: a suite that can't be read, a study that it does not have, or a command that failed.
    """
    for name in ("images", "seeds", "tiles"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: {getattr(options, name)} must be above 0")
    studies = read_suite(options.suite)
    if unknown := set(options.only) - set(studies):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: {options.suite} has {', '.join(studies)}")
    chosen = {name: tree for name, tree in studies.items() if not options.only or name in options.only}
    runs = [Run(name, seed, options.out / name / f"seed-{seed}", tree) for seed in range(options.seeds) for name, tree in chosen.items()]
    if not options.table:
        shards = options.shards or _phantoms(
            options.out / "shards", options.tiles, {tree["model"]["image_size"] for tree in chosen.values()}
        )
        for run in runs:
            if run.result(options.images) is None:
                _carry_out(run, shards, options)
                write_table(options.out, runs, options.images)
    write_table(options.out, runs, options.images)
    print((options.out / "table.md").read_text())


def read_suite(path: Path) -> dict[str, dict[str, Any]]:
    """Every study's options, by its name; they are checked as those of a training run are.

    Raises:
        ValueError: names the file, the study and what is wrong.
    """
    from attributegan.config import from_dict, read_yaml

    suite = read_yaml(path)
    if set(suite) != {"common", "studies"} or not all(isinstance(part, dict) for part in suite.values()):
        raise ValueError(f"{path}: a suite has two parts, `common` and `studies`")
    found = {}
    for name, entry in suite["studies"].items():
        if not isinstance(entry, dict) or not set(entry) <= {"base", "change"} or "base" not in entry:
            raise ValueError(f"{path}: {name}: write the `base` that it starts from, such as paper, and its `change`")
        base = read_yaml(ROOT / "configs" / "train" / f"{entry['base']}.yaml")
        found[name] = merged(base, suite["common"], entry.get("change") or {})
        from_dict(found[name], where=f"{path}: {name}")
    return found


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def _phantoms(folder: Path, tiles: int, sizes: set[int]) -> Path:
    if len(sizes) > 1:
        raise ValueError(f"image sizes {sorted(sizes)}: make one set of shards and give it as --shards")
    if not (folder / "index.parquet").exists():
        _command("tools.shard", "phantom", "--count", str(tiles), "--size", str(sizes.pop()), "--out", str(folder))
    return folder


def _carry_out(run: Run, shards: Path, options: argparse.Namespace) -> None:
    """Train, or go on, and evaluate."""
    import yaml

    config = run.folder / "study.yaml"
    run.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(run.options))
    _command(
        "launch.train", "--config", str(config), f"data.shards={shards}", f"run.dir={run.folder / 'run'}", f"train.images={options.images}",
        f"train.seed={run.seed}",
    )  # fmt: skip
    _command(
        "tools.evaluate", str(run.folder / "run"), "--shards", str(shards), "--out", str(run.report(options.images)),
        "--features", options.features,
    )  # fmt: skip


def _command(module: str, *arguments: str) -> None:
    """Run one of our commands in a process of its own; its output goes where ours goes."""
    print(f"$ python -m {module} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    if status:
        raise ValueError(f"{module} ended with status {status}; what it said is above")


def write_table(out: Path, runs: Sequence[Run], images: int) -> None:
    """``table.json`` with a row for every run that is there, ``table.md`` with the means over seeds."""
    from data_shards.files import whole_file

    rows = [row for run in runs if (row := _row(run, images))]
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("table.json", json.dumps(rows, indent=1)), ("table.md", "\n".join(_markdown(rows, images)) + "\n")):
        with whole_file(out / name) as stream:
            stream.write(text.encode())


def _row(run: Run, images: int) -> dict[str, Any] | None:
    result = run.result(images)
    if result is None:
        return None
    numbers = next(row for row in result["rows"] if row["kind"] == "generator")
    return {
        "study": run.name,
        "seed": run.seed,
        "images": images,
        "spearman": {name: scores["spearman"][0] for name, scores in numbers["control"].items()},
        "obeys": numbers.get("obeys"),
        "leak": numbers.get("leak", {}).get("mean"),
        "diversity": numbers.get("diversity"),
        "kid": numbers["quality"]["kid"][0],
    }


def _markdown(rows: Sequence[dict[str, Any]], images: int) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row["spearman"]))
    yield f"{images:,} images. Spearman over its ceiling for each attribute and their mean, mean leak, diversity, KID; means over seeds.\n"
    yield "| " + " | ".join(["study", "seeds", *names, "mean", "leak", "diversity", "KID"]) + " |"
    yield "|" + "---|" * (len(names) + 6)
    for study in dict.fromkeys(row["study"] for row in rows):
        of_study = [row for row in rows if row["study"] == study]
        columns = [[row["spearman"].get(name) for row in of_study] for name in names]
        columns += [[row[key] for row in of_study] for key in ("obeys", "leak", "diversity", "kid")]
        yield "| " + " | ".join([study, str(len(of_study)), *map(_mean, columns)]) + " |"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


if __name__ == "__main__":
    sys.exit(main())
