"""``attributegan-study``: trains and evaluates a suite of recipes and writes one table. Completed work is not repeated.

A suite is a YAML file such as configs/studies/recipes.yaml: ``common`` options, and ``studies`` by name, each with a ``base`` (the name of
a file in configs/train) and a ``change`` to it. Runs the training and evaluation commands that users run.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from attributegan.cli import BAD_INPUT, PERMANENT_ERROR, STOP_SIGNALS, exit_status, parser
from attributegan.errors import TransientError
from attributegan.run_dir.checkpoint_dirs import images_of, list_checkpoints
from attributegan.utils.child import end_with_parent
from attributegan.utils.files import atomic_write
from data_shards.storage import stores
from tools.evaluation.feature_networks import AUTO, MMD_NETWORK, choose
from tools.evaluation.report import LOW_CONTROL_SCORE
from tools.options import settings_of

EXAMPLES = """\
  attributegan-study recipes --out study                                  all studies, 40,000 images each
  attributegan-study recipes --out study --only published paper controlled --images 160000 --seeds 3
  attributegan-study recipes --out study --table                          only write the table of finished studies
Rerun the same command to resume after an interruption; finished studies are skipped. With more --images, runs resume from their latest
checkpoint."""


@dataclass(frozen=True)
class StudySettings:
    """Which studies to run and how. Fields are the options of the command.

    Raises:
        ValueError: names the option that is not above 0.
    """

    suite: Path
    out: Path
    only: tuple[str, ...] = ()  # names of studies; () for all
    images: int = 40_000  # training images of each run
    seeds: int = 1  # runs of each study
    shards: str | None = None  # None: make phantoms
    tiles: int = 4096  # phantoms to make
    features: str = AUTO  # network of KID
    table: bool = False  # only write the table

    def __post_init__(self) -> None:
        for name in ("images", "seeds", "tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: {getattr(self, name)} must be above 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = parse(argv)
    return exit_status(lambda: study(settings_of(StudySettings, options)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line (default: ``sys.argv``)."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    default = StudySettings
    result = parser("Train and evaluate the recipes of a suite on phantom or real tiles; write DIR/table.md and DIR/table.json.", EXAMPLES)
    result.add_argument("suite", metavar="NAME|FILE", type=Path, help="suite: recipes, tiles, tiles64 or a YAML file")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="output folder of the runs and the table")
    result.add_argument("--only", metavar="STUDY", nargs="+", default=[], help="names of the studies to run (default: all)")
    result.add_argument(
        "--images", metavar="N", type=int, default=default.images, help="training images of each run (default: %(default)s)"
    )
    result.add_argument(
        "--seeds", metavar="N", type=int, default=default.seeds, help="runs of each study, with seeds 0 to N - 1 (default: %(default)s)"
    )
    result.add_argument("--shards", metavar="DIR", help="shard set to train on (default: make phantoms in DIR)")
    result.add_argument(
        "--tiles", metavar="N", type=int, default=default.tiles, help="phantoms to make, including held-out ones (default: %(default)s)"
    )
    result.add_argument(
        "--features",
        metavar="NETWORK",
        default=default.features,
        help="feature network for KID, as in attributegan-evaluate (default: efficientnet-lite0, or -lite1 or -lite2 if a "
        "study trains on it)",
    )
    result.add_argument("--table", action="store_true", help="only write the table of finished studies")
    return result


@dataclass(frozen=True)
class Run:
    """A study with one seed.

    Args:
        options: the complete training configuration, from `attributegan.config.Config.to_dict`.
    """

    name: str
    seed: int
    folder: Path
    options: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """File with the configuration of the run in the folder."""
        return self.folder / "study.yaml"

    def report(self, images: int, features: str) -> Path:
        """Return the folder of the evaluation."""
        return self.folder / f"report-{images:012d}-{re.sub(r'[^A-Za-z0-9.-]+', '-', features)}"

    def result(self, images: int, features: str) -> dict[str, Any] | None:
        """Return the result of the evaluation, or None if it has not run."""
        file = self.report(images, features) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def differences(self) -> list[str]:
        """Return a message for each option that differs from the run in the folder; [] if there is no run.

        Raises:
            ValueError: the configuration of the run can't be read.
        """
        from attributegan.config import from_dict, read_yaml

        if not self.config_file.exists():
            return []
        before = from_dict(read_yaml(self.config_file), where=str(self.config_file)).to_dict()
        return [
            f"{section}.{key} was {before[section][key]!r}, is {value!r}"
            for section, values in self.options.items()
            for key, value in values.items()
            if before[section][key] != value
        ]

    def write_config(self) -> None:
        """Write the configuration, including the shards, to the folder.

        Raises:
            ValueError: the folder has a run with a different configuration.
        """
        import yaml

        if changed := self.differences():
            raise ValueError(
                f"{self.config_file}: the existing run of {self.name} has other options: {'; '.join(changed)}; use another --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config_file) as stream:
            stream.write(yaml.safe_dump(self.options).encode())


def study(settings: StudySettings) -> None:
    """Run the missing studies, and write the table after each. A failed study does not stop the others.

    Raises:
        ValueError: an invalid suite, an unknown study, features that a study trains on, a folder with other runs, or commands that failed.
    """
    studies = read_suite(settings.suite)
    settings = with_features(settings, studies)
    failed = [] if settings.table else _run(settings, studies)
    write_table(settings, studies)
    print((settings.out / "table.md").read_text())
    if failed:
        raise ValueError("; ".join(failed))


def with_features(settings: StudySettings, studies: Mapping[str, dict[str, Any]]) -> StudySettings:
    """Return the settings with the feature network that scores the studies; ValueError if a study trains on it."""
    networks = {name: MMD_NETWORK if options["loss"].get("mmd") else "" for name, options in studies.items()}
    return dataclasses.replace(settings, features=choose(settings.features, networks))


def _run(settings: StudySettings, studies: Mapping[str, dict[str, Any]]) -> list[str]:
    """Run the missing studies; returns an error message per failed run."""
    chosen = rows(settings, studies)
    shards = find_shards(settings, studies)
    failed = []
    for name, seed in chosen:
        if not (run := open_row(settings, studies, shards, name, seed)):
            continue
        try:
            train_and_evaluate(run, shards, settings)
        except (TransientError, ValueError) as error:
            failed.append(f"{name}, seed {seed}: {error}")
            print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
        write_table(settings, studies)
    return failed


def rows(settings: StudySettings, studies: Mapping[str, dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the name and the seed of each run, in order; ValueError for an unknown study."""
    if unknown := set(settings.only) - set(studies):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: unknown; {settings.suite} has {', '.join(studies)}")
    chosen = [name for name in studies if not settings.only or name in settings.only]
    return [(name, seed) for seed in range(settings.seeds) for name in chosen]


def find_shards(settings: StudySettings, studies: Mapping[str, dict[str, Any]]) -> str:
    """Return the shard set of the suite; makes phantoms if none is given and they do not exist."""
    if settings.shards:
        return settings.shards
    return str(_phantoms(settings.out, settings.tiles, {studies[name]["model"]["image_size"] for name, _ in rows(settings, studies)}))


def open_row(settings: StudySettings, studies: Mapping[str, dict[str, Any]], shards: str, name: str, seed: int) -> Run | None:
    """Write the configuration of a run; returns None if the run is finished.

    Raises:
        ValueError: the folder has a run with other options.
    """
    location = stores.redact(shards) if stores.is_remote(shards) else str(Path(shards).resolve())
    run = Run(name, seed, settings.out / name / f"seed-{seed}", merged(studies[name], {"data": {"shards": location}}))
    run.write_config()
    return run if run.result(settings.images, settings.features) is None else None


def read_suite(path: Path) -> dict[str, dict[str, Any]]:
    """Read a suite.

    Returns:
        The complete training configuration of each study, by its name.

    Raises:
        ValueError: names the file, the study and the option that is wrong.
    """
    from attributegan.config import from_dict, read_yaml

    path = presets.resolve("studies", path)
    suite = read_yaml(path)
    if set(suite) != {"common", "studies"} or not all(isinstance(part, dict) for part in suite.values()):
        raise ValueError(f"{path}: a suite must have exactly two sections, `common` and `studies`")
    bases = presets.presets("train")
    found = {}
    for name, entry in suite["studies"].items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(
                f"{path}: {name!r}: a study name may have only letters, digits, dots, dashes and underscores, since it names a folder"
            )
        if not isinstance(entry, dict) or not set(entry) <= {"base", "change"} or entry.get("base") not in list(bases):
            raise ValueError(f"{path}: {name}: a study needs a `base`, one of {', '.join(bases)}, and optionally a `change`")
        change = entry.get("change") or {}
        if not isinstance(change, dict):
            raise ValueError(f"{path}: {name}: change: expected sections with options, got {change!r}")
        tree = merged(read_yaml(bases[entry["base"]]), suite["common"], change)
        found[name] = from_dict(tree, where=f"{path}: {name}").to_dict()
    return found


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def _phantoms(out: Path, tiles: int, sizes: set[int]) -> Path:
    """Make a shard set of phantoms in ``out`` unless it exists, and return its folder."""
    if len(sizes) > 1:
        raise ValueError(f"the studies have different image sizes {sorted(sizes)}: make a shard set and give it as --shards")
    size = sizes.pop()
    folder = out / f"phantoms-{tiles}-{size}px"
    if not (folder / "index.parquet").exists():
        _command("shard", "phantom", "--count", str(tiles), "--size", str(size), "--out", str(folder))
    return folder


def train_and_evaluate(run: Run, shards: str, settings: StudySettings) -> None:
    """Train, or resume training, and evaluate."""
    trained = max(map(images_of, list_checkpoints(run.folder / "run")), default=0)
    if trained >= settings.images + run.options["train"]["batch"]:
        raise ValueError(f"{run.folder / 'run'}: is already at {trained:,} images; increase --images, or use another --out")
    _command(
        "train",
        "--config",
        str(run.folder / "study.yaml"),
        f"data.shards={shards}",
        f"run.dir={run.folder / 'run'}",
        f"train.images={settings.images}",
        f"train.seed={run.seed}",
    )
    _command(
        "evaluate",
        str(run.folder / "run"),
        "--shards",
        shards,
        "--out",
        str(run.report(settings.images, settings.features)),
        "--features",
        settings.features,
    )


def _command(name: str, *arguments: str) -> None:
    """Run a command in a child process with the same output; forwards stop signals to it, so that it shuts down cleanly.

    Raises:
        KeyboardInterrupt: the child was stopped by one of these signals, whose number is its argument.
        TransientError: the command failed, and may succeed if it is run again.
        ValueError: the command failed.
    """
    print(f"$ attributegan-{name} {' '.join(arguments)}", flush=True)
    with subprocess.Popen(commands.child(name, *arguments), preexec_fn=end_with_parent) as child:
        before = {number: signal.signal(number, lambda number, frame: child.send_signal(number)) for number in STOP_SIGNALS}
        try:
            status = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if (number := -status if status < 0 else status - 128) in STOP_SIGNALS:
        raise KeyboardInterrupt(number)
    if status:
        error = TransientError if status not in (BAD_INPUT, PERMANENT_ERROR) else ValueError
        raise error(f"attributegan-{name} failed with exit status {status}; see its message above")


def write_table(settings: StudySettings, studies: Mapping[str, dict[str, Any]]) -> None:
    """Write ``table.json`` with a row per finished run, and ``table.md`` with the means over seeds.

    Runs whose options differ from the suite are skipped with a message.
    """
    rows = []
    for name, tree in studies.items():
        seeds = (folder.name.removeprefix("seed-") for folder in (settings.out / name).glob("seed-*"))
        for seed in sorted(int(seed) for seed in seeds if seed.isdecimal()):
            run = Run(name, seed, settings.out / name / f"seed-{seed}", tree)
            if (result := run.result(settings.images, settings.features)) is None:
                continue
            if changed := [line for line in run.differences() if not line.startswith("data.shards ")]:
                print(f"skipping {run.folder}, its options differ: {'; '.join(changed)}", file=sys.stderr, flush=True)
                continue
            rows.append(_row(run, settings.images, result))
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("table.json", json.dumps(rows, indent=1)), ("table.md", "\n".join(_markdown(rows, settings.images)) + "\n")):
        with atomic_write(settings.out / name) as stream:
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
    """Return the mean over the attributes; None for reports without it."""
    changes = [path["changed"] for path in paths.values() if "changed" in path]
    return sum(changes) / len(changes) if changes else None


def _markdown(rows: Sequence[dict[str, Any]], images: int) -> Iterator[str]:
    yield f"{images:,} images. Spearman relative to its maximum for each attribute, and their mean (control score); mean of the image"
    yield f"measurements on phantoms, relative to real ones; mean leakage (not reported below a control score of {LOW_CONTROL_SCORE});"
    yield "pixel change when an attribute is swept, mean over attributes; diversity; KID x 1000. Means over seeds.\n"
    names = list(dict.fromkeys(name for row in rows for name in row["spearman"]))
    yield "| " + " | ".join(["study", "seeds", *names, "mean", "measured", "leakage", "pixel change", "diversity", "KID x 1000"]) + " |"
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
    present = [value for value in values if value is not None]
    return f"{sum(present) / len(present):.{digits}f}" if present else "–"


if __name__ == "__main__":
    sys.exit(main())
