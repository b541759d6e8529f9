"""``attributegan-study``: trains recipes side by side on phantoms, evaluates each and writes one table. Runs what is missing.

A suite is a YAML file such as configs/studies/recipes.yaml: ``common`` options, and ``studies`` by name, each with the ``base`` that it
starts from (a file of configs/train) and its own ``change``. Training and evaluating are the commands that users type.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan import commands, presets
from attributegan.cli import exit_status, parser
from attributegan.run_dir.checkpoint_dirs import images_of, list_checkpoints
from attributegan.utils.files import atomic_write
from data_shards.storage import stores
from tools.evaluation.report import LOW_CONTROL_SCORE

EXAMPLES = """\
  attributegan-study recipes --out study                                  all of them, 40,000 images each
  attributegan-study recipes --out study --only published paper controlled --images 160000 --seeds 3
  attributegan-study recipes --out study --table                          what is there so far
Start it again after any stop: finished studies are not repeated, and more images go on from where a run is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), run what is missing, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: study(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("Train the recipes of a suite on phantom tiles, evaluate them, and write DIR/table.md and table.json.", EXAMPLES)
    result.add_argument("suite", metavar="SUITE", type=Path, help="the recipes")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the runs and the table")
    result.add_argument("--only", metavar="STUDY", nargs="+", default=[], help="names of studies; all by default")
    result.add_argument("--images", metavar="N", type=int, default=40_000, help="length of each run (%(default)s)")
    result.add_argument("--seeds", metavar="N", type=int, default=1, help="runs of each study, with seeds from 0 on (%(default)s)")
    result.add_argument("--shards", metavar="DIR", help="shard set to train on; by default phantoms are made in DIR")
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
    options: dict[str, Any]  # all of them, as `attributegan.config.Config.to_dict` gives them

    @property
    def note(self) -> Path:
        return self.folder / "study.yaml"

    def report(self, images: int, features: str) -> Path:
        return self.folder / f"report-{images:012d}-{re.sub(r'[^A-Za-z0-9.-]+', '-', features)}"

    def result(self, images: int, features: str) -> dict[str, Any] | None:
        """What the evaluation said, once there is one."""
        file = self.report(images, features) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def differences(self) -> list[str]:
        """Options of the run that is in the folder and those of now, where they are not the same; none when there is no run.

        Raises:
            ValueError: the note of the folder's run can't be read.
        """
        from attributegan.config import from_dict, read_yaml

        if not self.note.exists():
            return []
        before = from_dict(read_yaml(self.note), where=str(self.note)).to_dict()
        return [
            f"{section}.{key} was {before[section][key]!r}, is {value!r}"
            for section, values in self.options.items()
            for key, value in values.items()
            if before[section][key] != value
        ]

    def same_as_before(self) -> None:
        """Note down the options, which a run keeps, the shards among them.

        Raises:
            ValueError: the folder's run has other ones.
        """
        import yaml

        if changed := self.differences():
            raise ValueError(f"{self.note}: the run there is not that of {self.name} now: {'; '.join(changed)}; take another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.note) as stream:
            stream.write(yaml.safe_dump(self.options).encode())


def study(options: argparse.Namespace) -> None:
    """Run what is missing, study by study, and write the table after each. One that fails does not keep the others from running.

    Raises:
        ValueError: a suite that can't be read, a study that it does not have, a folder with other runs, or commands that failed.
    """
    for name in ("images", "seeds", "tiles"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: {getattr(options, name)} must be above 0")
    studies = read_suite(options.suite)
    if unknown := set(options.only) - set(studies):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: {options.suite} has {', '.join(studies)}")
    failed = [] if options.table else _run(options, studies)
    write_table(options, studies)
    print((options.out / "table.md").read_text())
    if failed:
        raise ValueError("; ".join(failed))


def _run(options: argparse.Namespace, studies: Mapping[str, dict[str, Any]]) -> list[str]:
    """What went wrong, a line for each run."""
    chosen = [name for name in studies if not options.only or name in options.only]
    shards = options.shards or str(_phantoms(options.out, options.tiles, {studies[name]["model"]["image_size"] for name in chosen}))
    failed = []
    for seed in range(options.seeds):
        for name in chosen:
            location = stores.redact(shards) if stores.is_remote(shards) else str(Path(shards).resolve())
            run = Run(name, seed, options.out / name / f"seed-{seed}", merged(studies[name], {"data": {"shards": location}}))
            run.same_as_before()
            if run.result(options.images, options.features) is not None:
                continue
            try:
                _carry_out(run, shards, options)
            except ValueError as error:
                failed.append(f"{name}, seed {seed}: {error}")
                print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
            write_table(options, studies)
    return failed


def read_suite(path: Path) -> dict[str, dict[str, Any]]:
    """Every study's options, all of them, by its name; they are checked as those of a training run are.

    Raises:
        ValueError: names the file, the study and what is wrong.
    """
    from attributegan.config import from_dict, read_yaml

    path = presets.resolve("studies", path)
    suite = read_yaml(path)
    if set(suite) != {"common", "studies"} or not all(isinstance(part, dict) for part in suite.values()):
        raise ValueError(f"{path}: a suite has two parts, `common` and `studies`")
    bases = presets.presets("train")
    found = {}
    for name, entry in suite["studies"].items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(f"{path}: {name!r}: call a study by letters, digits, dots and dashes; its folder has the same name")
        if not isinstance(entry, dict) or not set(entry) <= {"base", "change"} or entry.get("base") not in list(bases):
            raise ValueError(f"{path}: {name}: write the `base` that it starts from, one of {', '.join(bases)}, and its `change`")
        change = entry.get("change") or {}
        if not isinstance(change, dict):
            raise ValueError(f"{path}: {name}: change: expected sections with options, got {change!r}")
        tree = merged(read_yaml(bases[entry["base"]]), suite["common"], change)
        found[name] = from_dict(tree, where=f"{path}: {name}").to_dict()
    return found


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def _phantoms(out: Path, tiles: int, sizes: set[int]) -> Path:
    if len(sizes) > 1:
        raise ValueError(f"image sizes {sorted(sizes)}: make one set of shards and give it as --shards")
    size = sizes.pop()
    folder = out / f"phantoms-{tiles}-{size}px"
    if not (folder / "index.parquet").exists():
        _command("shard", "phantom", "--count", str(tiles), "--size", str(size), "--out", str(folder))
    return folder


def _carry_out(run: Run, shards: str, options: argparse.Namespace) -> None:
    """Train, or go on, and evaluate."""
    seen = max(map(images_of, list_checkpoints(run.folder / "run")), default=0)
    if seen >= options.images + run.options["train"]["batch"]:
        raise ValueError(f"{run.folder / 'run'}: is at {seen:,} images already; ask for as many or more, or take another --out")
    _command(
        "train",
        "--config",
        str(run.folder / "study.yaml"),
        f"data.shards={shards}",
        f"run.dir={run.folder / 'run'}",
        f"train.images={options.images}",
        f"train.seed={run.seed}",
    )
    _command(
        "evaluate",
        str(run.folder / "run"),
        "--shards",
        shards,
        "--out",
        str(run.report(options.images, options.features)),
        "--features",
        options.features,
    )


def _command(name: str, *arguments: str) -> None:
    """Run one of our commands in a process of its own; its output goes where ours goes, and what is to stop us stops it, in good order."""
    print(f"$ attributegan-{name} {' '.join(arguments)}", flush=True)
    stops = (signal.SIGINT, signal.SIGTERM)
    with subprocess.Popen(commands.child(name, *arguments)) as child:
        before = {number: signal.signal(number, lambda number, frame: child.send_signal(number)) for number in stops}
        try:
            status = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if -status in stops or status - 128 in stops:
        raise KeyboardInterrupt
    if status:
        raise ValueError(f"attributegan-{name} ended with status {status}; what it said is above")


def write_table(options: argparse.Namespace, studies: Mapping[str, dict[str, Any]]) -> None:
    """``table.json`` with a row for every run of the suite that is there, ``table.md`` with the means over seeds.

    Runs of a study that the suite has changed since are left out, and named.
    """
    rows = []
    for name, tree in studies.items():
        seeds = (folder.name.removeprefix("seed-") for folder in (options.out / name).glob("seed-*"))
        for seed in sorted(int(seed) for seed in seeds if seed.isdecimal()):
            run = Run(name, seed, options.out / name / f"seed-{seed}", tree)
            if (result := run.result(options.images, options.features)) is None:
                continue
            if changed := [line for line in run.differences() if not line.startswith("data.shards ")]:
                print(f"{run.folder} is left out of the table: {'; '.join(changed)}", file=sys.stderr, flush=True)
                continue
            rows.append(_row(run, options.images, result))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("table.json", json.dumps(rows, indent=1)), ("table.md", "\n".join(_markdown(rows, options.images)) + "\n")):
        with atomic_write(options.out / name) as stream:
            stream.write(text.encode())


def _row(run: Run, images: int, result: Mapping[str, Any]) -> dict[str, Any]:
    real, numbers = (next(row for row in result["rows"] if row["kind"] == kind) for kind in ("ceiling", "generator"))
    return {
        "study": run.name,
        "seed": run.seed,
        "images": images,
        "spearman": {name: scores["spearman"][0] for name, scores in numbers["control"].items()},
        "obeys": numbers.get("obeys"),
        "measured": {name: value / real["measured"][name] for name, value in numbers.get("measured", {}).items()},
        "leak": numbers["leak"]["mean"] if numbers.get("obeys", 0) >= LOW_CONTROL_SCORE else None,
        "pixel_change": _pixel_change(numbers.get("paths", {})),
        "diversity": numbers.get("diversity"),
        "kid": numbers["quality"].get("kid", [None])[0],
    }


def _pixel_change(paths: Mapping[str, Mapping[str, float]]) -> float | None:
    """Mean over the attributes; None of reports that don't have it."""
    known = [path["changed"] for path in paths.values() if "changed" in path]
    return sum(known) / len(known) if known else None


def _markdown(rows: Sequence[dict[str, Any]], images: int) -> Iterator[str]:
    yield f"{images:,} images. Spearman over its ceiling for each attribute and their mean; the mean of what is measured on the pixels of"
    yield f"phantoms, over that of real ones; mean leak (where the mean is {LOW_CONTROL_SCORE} or more: without control there is no leak);"
    yield "pixel change by moving an attribute, mean over attributes; diversity; KID x 1000. Means over seeds.\n"
    names = list(dict.fromkeys(name for row in rows for name in row["spearman"]))
    yield "| " + " | ".join(["study", "seeds", *names, "mean", "measured", "leak", "pixel change", "diversity", "KID x 1000"]) + " |"
    yield "|" + "---|" * (len(names) + 8)
    for study in dict.fromkeys(row["study"] for row in rows):
        of_study = [row for row in rows if row["study"] == study]
        columns = [[row["spearman"].get(name) for row in of_study] for name in names]
        columns.append([row["obeys"] for row in of_study])
        columns.append([sum(row["measured"].values()) / len(row["measured"]) for row in of_study if row["measured"]])
        columns += [[row[key] for row in of_study] for key in ("leak", "pixel_change", "diversity")]
        kid = _mean([1000 * row["kid"] for row in of_study], digits=0)
        yield "| " + " | ".join([study, str(len(of_study)), *map(_mean, columns), kid]) + " |"


def _mean(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "–"


if __name__ == "__main__":
    sys.exit(main())
