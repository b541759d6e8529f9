"""Files for GitHub: the CI workflow, issue forms, citation and contributor guides are valid and name things that exist."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

import attributegan

ROOT = Path(__file__).parents[2]
GUIDES = ("AGENTS.md", "CONTRIBUTING.md", "SECURITY.md")


def load(path: str) -> dict:
    tree = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_ci_workflow() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key "on" as true
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow["jobs"]) == {"test", "wheel", "docs"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and 0 < job["timeout-minutes"] <= 60
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
    targets = {target for job in workflow["jobs"].values() for step in job["steps"] for target in re.findall(r"make ([a-z-]+)", str(step))}
    assert targets == {"venv", "lint", "test-fast", "docs"}
    site = {"docs"} if (ROOT / "mkdocs.yml").exists() else set()
    assert targets - {"docs"} | site <= make_targets()


def test_ci_tests_the_supported_versions_of_python() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    versions = re.findall(r":: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    assert versions and load(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == versions


def test_ci_starts_commands_that_exist() -> None:
    steps = load(".github/workflows/ci.yml")["jobs"]["wheel"]["steps"]
    names = next(match[1].split() for step in steps if (match := re.search(r"for name in ([a-z ]+); do", step.get("run", ""))))
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert len(names) > 5 and all(f"attributegan-{name} = " in setup for name in names)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_form(name: str) -> None:
    form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"] and form["description"] and form["labels"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_citation() -> None:
    citation = load("CITATION.cff")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    assert (citation["title"], citation["license"]) == tuple(setup["metadata"][key] for key in ("name", "license"))
    assert citation["version"] == attributegan.__version__
    (paper,) = citation["references"]
    assert paper["year"] == 2021 and paper["doi"] and [author["family-names"] for author in paper["authors"]][:2] == ["Ye", "Xue"]


@pytest.mark.parametrize("name", GUIDES)
def test_guide_names_files_and_targets_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    paths = re.findall(r"`((?:attributegan|configs|data_shards|docs|launch|slurm|tests|tools|\.ci)/[\w./-]*)`", text)
    missing = [path for path in [*links, *paths] if not path.startswith("http") and not (ROOT / path).exists()]
    assert missing == []
    assert set(re.findall(r"make ([a-z-]+)", text)) <= make_targets()


def test_agents_guide_fits_on_one_screen() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 40
