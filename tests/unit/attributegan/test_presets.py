"""Names of presets and paths, and the commands by name."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import ROOT
from time_limits import seconds

from attributegan import attributes, commands, config
from attributegan.distributed import deepspeed_config
from attributegan.presets import presets, resolve
from attributegan.utils import layout
from slurm import cluster_config, submit, sweep
from tools import presets as command


@pytest.mark.parametrize("kind", sorted(command.OPTIONS))
def test_every_file_of_configs_is_a_preset(kind: str) -> None:
    files = [path for path in (ROOT / "configs" / kind).iterdir() if path.suffix in (".yaml", ".json") and path.name != "schema.json"]
    assert files
    assert [resolve(kind, path.stem).resolve() for path in files] == files
    assert len(presets(kind)) == len(files)


def test_readers_take_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load("small") == config.load(ROOT / "configs/train/small.yaml")
    assert cluster_config.load("gpu") == cluster_config.load(ROOT / "configs/slurm/gpu.yaml")
    assert attributes.AttributeSchema.from_yaml("bladder") == attributes.PUBLISHED
    assert len(sweep.read("rates")) == 4
    assert deepspeed_config._read("zero2") == deepspeed_config._read(str(ROOT / "configs/deepspeed/zero2.json"))


def test_a_name_that_is_none_lists_the_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^tiny: not a preset and not a file; presets are controlled, paper, published, small, tissue$"):
        config.load("tiny")
    with pytest.raises(ValueError, match=r"^configs/train/paper.yaml: no such file; for the preset that ships, give paper \(presets are"):
        config.load("configs/train/paper.yaml")
    with pytest.raises(ValueError, match="^mine.yaml: can't be read: No such file"):
        config.load("mine.yaml")


def test_files_without_suffix_are_read_unless_a_preset_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("train: {seed: 7}\n")
    assert config.load("mine").train.seed == 7
    (tmp_path / "paper").mkdir()  # such as a run's folder
    assert config.load("paper").model.image_size == 512
    (tmp_path / "small").write_text("train: {seed: 7}\n")
    with pytest.raises(ValueError, match=f"^small: is a preset and also a file here; for the file, give {tmp_path}/small$"):
        config.load("small")
    assert config.load(tmp_path / "small").train.seed == 7


@pytest.mark.parametrize("text", ["a\0b", "x" * 5000, "/" + "y" * 5000])
def test_odd_names_are_refused_as_others_are(text: str) -> None:
    with pytest.raises(ValueError):
        config.load(text)


def test_presets_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert "controlled paper published small" in capsys.readouterr().out
    assert command.main(["--copy", str(tmp_path / "copied")]) == 0
    for kind in command.OPTIONS:
        assert {path.stem for path in (tmp_path / "copied" / kind).iterdir()} >= set(presets(kind))
    assert command.main(["--copy", str(tmp_path / "copied")]) == 2
    assert command.main(["--path", "accelerate/gpu"]) == 2
    assert "accelerate has cpu, ddp" in capsys.readouterr().err
    assert command.main(["--path", "nothing"]) == 2


def test_every_command_has_its_module_and_its_console_script() -> None:
    scripts = {
        line.split("=")[0].strip(): line.split("=")[1].strip()
        for line in (ROOT / "setup.cfg").read_text().splitlines()
        if line.startswith("    attributegan-") and "=" in line
    }
    assert scripts == {f"attributegan-{name}": f"attributegan.commands:{name}" for name in commands.COMMANDS}
    for name, module in commands.COMMANDS.items():
        assert find_spec(module) and getattr(commands, name).args == (name,)
    with pytest.raises(AttributeError):
        commands.absent  # noqa: B018


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["trian"]) == 2
    assert "error: trian: no such command" in capsys.readouterr().err
    assert commands.main([]) == 0
    assert "commands: train, doctor" in capsys.readouterr().out


def test_packages_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.foreign_package() == ""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tools")
    importlib.invalidate_caches()
    assert commands.foreign_package().startswith(f"the package tools comes from {tmp_path}/tools/__init__.py, not from {ROOT}/tools")


def test_child_runs_here_whatever_the_folder_has(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit(9)\n")
    done = subprocess.run(commands.child("presets", "--path", "train/small"), cwd=tmp_path, capture_output=True, timeout=seconds(60))
    assert done.returncode == 0
    assert Path(done.stdout.decode().strip()) == layout.configs_dir() / "train" / "small.yaml"


def test_submitting_without_submitit_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert submit.main(["--config", "small", "--cluster", "cpu", "data.shards=x", "run.dir=y", "--dry-run"]) == 2
    assert "submitting needs submitit: pip install 'attributegan[cluster]'" in capsys.readouterr().err


def test_zero_without_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    settings = config.load("small", ["deepspeed.generator=zero2"])
    with pytest.raises(ValueError, match=r"^zero2: ZeRO requires deepspeed: pip install 'attributegan\[train\]'$"):
        deepspeed_config.resolve(settings, {}, 1)


def test_messages_and_help_name_presets_and_not_files_of_the_checkout() -> None:
    """In a wheel `configs`, `launch` and `tools` are elsewhere."""
    of_checkout, found = re.compile(r"configs/\w+/\w|\b(launch|slurm|tools)/\w+\.py"), []
    for path in (path for package in layout.PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docstrings
                and of_checkout.search(node.value)
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert not found, "\n".join(found)
