"""What is written from the options: the reference page and the JSON Schemas, both current, and the schemas right."""

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from attributegan import strict_yaml

ROOT = Path(__file__).parents[2]
FILES = runpy.run_path(str(ROOT / "docs" / "reference.py"))["files"]()
KINDS = ("train", "slurm", "attributes", "studies", "sweep")
SHIPPED = [path for kind in KINDS for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


def errors(kind: str, tree: Any) -> list[str]:
    schema = json.loads((ROOT / "configs" / kind / "schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(tree)]


@pytest.mark.parametrize("name", list(FILES))
def test_committed_file_is_current(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name], "run `python docs/reference.py`"


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_valid(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(json.loads((ROOT / "configs" / kind / "schema.json").read_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_file_names_its_schema_and_passes_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json" and (path.parent / "schema.json").exists()
    assert errors(path.parent.name, strict_yaml.read(path)) == []


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("train", "model: {image_sise: 64}", "'image_sise' was unexpected"),
        ("train", "modle: {image_size: 64}", "'modle' was unexpected"),
        ("train", "model: {image_size: 100}", "100 is not one of"),
        ("train", "train: {batch: many}", "does not match"),
        ("train", "train: {batch: 1.5}", "is not of type 'integer', 'string'"),
        ("train", "train: {batch: 0}", "less than the minimum"),
        ("train", "train: {channels_last: 1}", "is not of type 'boolean'"),
        ("train", "data: {balance: 1.5}", "greater than the maximum"),
        ("train", "optim: {generator_lr: 0}", "less than or equal to the minimum"),
        ("train", "optim: {betas: 0.5}", "is not of type 'array'"),
        ("train", "optim: {betas: [0.5, 1]}", "greater than or equal to the maximum"),
        ("train", "augment: {policy: [zoom]}", "'zoom' is not one of"),
        ("train", "loss: {adversarial: wgan}", "'wgan' is not one of"),
        ("slurm", "node: 2", "'node' was unexpected"),
        ("slurm", "network: {card: ib0}", "'card' was unexpected"),
        ("slurm", "nodes: 0", "less than the minimum"),
        ("slurm", "setup: module load cuda", "is not of type 'array'"),
        ("attributes", "mitosis: {levels: [none]}", "is too short"),
        ("attributes", "mitosis: {level: [none, some]}", "'level' was unexpected"),
        ("attributes", "cell size: [small, large]", "does not match any of the regexes"),
        ("studies", "common: {}\nstudies: {one: {base: papre}}", "'papre' is not one of"),
        ("studies", "common: {train: {batsh: 3}}\nstudies: {}", "'batsh' was unexpected"),
        ("studies", "common: {}\nstudies: {one: {base: paper, change: {loss: {r1_gamma: -1}}}}", "less than the minimum"),
        ("sweep", "loss.r1_gamma: 0.1", "is not of type 'array'"),
        ("sweep", "loss.gamma: [0.1]", "'loss.gamma' was unexpected"),
        ("sweep", "train.batch: [0]", "less than the minimum"),
    ],
)
def test_wrong_key_type_and_value_fail(kind: str, text: str, said: str) -> None:
    assert any(said in error for error in errors(kind, yaml.safe_load(text))), errors(kind, yaml.safe_load(text))


def test_numbers_pass_as_editors_and_as_python_read_them() -> None:
    """``1_000`` is text in YAML 1.2, and ``2e-4`` in YAML 1.1."""
    for value in (1000, "1_000", "1e6", 1e6):
        assert errors("train", {"train": {"images": value}}) == []
    for value in (1, 2e-4, "2e-4", "1.5e+3"):
        assert errors("train", {"optim": {"generator_lr": value}}) == []


def test_attributes_pass_in_both_forms() -> None:
    assert errors("attributes", {"mitosis": ["none", "some"], "grade": {"levels": [1, 2], "not_assessable": None}}) == []


def test_defaults_pass_their_own_schema() -> None:
    from attributegan.config import Config

    assert errors("train", Config().to_dict()) == []
