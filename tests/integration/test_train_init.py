"""A run that starts from the weights of another one (`train.init`): other attributes, another image size, all modes, resumed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from runs import CONTROL, ROOT, begin, differing, launcher, output, tensors, tensors_in, write_config
from shards import make_set
from time_limits import seconds

from attributegan.run_dir import status

# 32 to 64 px with equal widths
SMALL = [*CONTROL[:-1], "model.fmap_inverse_coef=7", "train.images=16"]
LARGE = [*SMALL, "model.image_size=64", "run.save_every=8", "train.init=INIT"]


def launch(mode: str, processes: int, folder: Path, jobs: list[dict]) -> str:
    """Run jobs (`many_runs.Job` with "run") in one launch; returns its output."""
    config, name = str(write_config(folder / "all")), folder / f"{mode}-{jobs[0]['run']}"
    trees = []
    for job in jobs:
        overrides = [f"run.dir={folder / job['run']}", f"train.world_size={processes}", *job["overrides"]]
        trees.append({"config": config, "overrides": overrides} | ({"save_again": str(folder / job["again"])} if "again" in job else {}))
    name.with_suffix(".json").write_text(json.dumps(trees))
    process = begin([*launcher(mode, processes), str(ROOT / "tests" / "helpers" / "many_runs.py"), str(name.with_suffix(".json"))], name)
    assert process.wait(timeout=seconds(280)) == 0, output(name)
    return output(name)


@pytest.fixture(scope="module")
def done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a source of five attributes at 32 px and runs of two other attributes at 64 px, and the output of their launch."""
    folder = tmp_path_factory.mktemp("transfer")
    other = make_set(folder / "other", 64, size=64)
    large = [f"data.shards={other}", *(option.replace("INIT", str(folder / "source")) for option in LARGE)]
    gone = [*large[:-1], "train.init=absent"]
    jobs = [
        {"run": "source", "overrides": [f"data.shards={shards}", *SMALL]},
        {"run": "plain", "overrides": [*large[:-1], "train.images=8"], "again": "plain-initial"},
        {"run": "whole", "overrides": large, "again": "initial"},
        {"run": "parts", "overrides": [*large, "train.images=8"]},
        {"run": "parts", "overrides": gone},
    ]
    text = launch("one", 1, folder, jobs)
    launch("zero3", 2, folder, [{"run": "sharded", "overrides": [*large, "train.images=8"], "again": "sharded-initial"}])
    return folder, text


def in_folder(folder: Path) -> dict[str, torch.Tensor]:
    return tensors_in(next(folder.glob("images-*")))


def test_new_run_takes_the_stages_of_its_source(done: tuple[Path, str]) -> None:
    folder, text = done
    source, initial, plain = tensors(folder / "source"), in_folder(folder / "initial"), in_folder(folder / "plain-initial")
    for network in ("generator", "generator_ema"):
        for name in ("stages.2.conv.weight", "stages.0.norm.running_var", "from_latent.conv.weight"):
            assert torch.equal(initial[f"{network}/{name}"], source[f"{network}/{name}"])
        assert torch.equal(initial[f"{network}/from_label.conv.weight"], plain[f"{network}/from_label.conv.weight"])
    assert torch.equal(initial["discriminator/stages.2.refine.weight"], source["discriminator/stages.1.refine.weight"])
    assert torch.equal(
        initial["discriminator/auxiliary.convs.0.averaged_weight"], source["discriminator/auxiliary.convs.0.averaged_weight"]
    )
    assert not [name for name in initial if "optimizer" in name]
    assert "train.init: generator_ema: " in text and "new: from_label.conv, stages.3, to_image" in text


def test_origin_is_recorded_and_a_resumed_run_keeps_it(done: tuple[Path, str]) -> None:
    folder, text = done
    checkpoint = max((folder / "source" / "checkpoints").glob("images-*"))
    digest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    record = {"path": str(checkpoint), "sha256": digest, "images": 16}
    for run in ("whole", "parts"):
        found = status.read(folder / run)
        assert found is not None and found.init == record
        last = max((folder / run / "checkpoints").glob("images-*"))
        assert json.loads((last / "state.json").read_text())["init"] == record
    plain = status.read(folder / "plain")
    assert plain is not None and plain.init == {} and "init" not in json.loads((checkpoint / "state.json").read_text())
    assert text.count("train.init is ignored") == 1


def test_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(done: tuple[Path, str]) -> None:
    folder, _ = done
    assert differing(tensors(folder / "parts"), tensors(folder / "whole")) == []
    assert differing(tensors(folder / "whole", 8), tensors(folder / "plain"))


def test_sharded_networks_take_the_same_weights(done: tuple[Path, str]) -> None:
    folder, _ = done
    whole, sharded = in_folder(folder / "initial"), in_folder(folder / "sharded-initial")
    assert differing({name: tensor for name, tensor in sharded.items() if name in whole}, whole) == []
