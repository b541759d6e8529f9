"""Exports through the command line: import of a published checkpoint, the generator for the hub, ONNX and torch.export."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import plain_network as plain
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from attributegan import config
from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.checkpoint import loading, store, writer
from attributegan.config import Config, DataConfig, ModelConfig
from attributegan.distributed.runtime import Runtime
from attributegan.export import AttributeGenerator, graphs
from attributegan.models import Generator, published
from attributegan.sampling import generate, latents
from attributegan.training.trainer import Trainer
from tools.export import main
from tools.sample import main as sample_main

# Neither the names nor the numbers of levels are sorted.
SCHEMA = AttributeSchema((Attribute("tone", ("dark", "light")), Attribute("size", ("none", "low", "mid", "high"), not_assessable=0)))
SMALL = ModelConfig(
    image_size=32, latent_dim=16, fmap_max=16, fmap_inverse_coef=6, generator_attention=(16,), label_columns="levels", attributes="my.yaml"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained generator and a different averaged one."""
    return untrained_run(tmp_path_factory.mktemp("run") / "run", SMALL)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ordinal levels and modulation of every stage."""
    config = dataclasses.replace(SMALL, generator_levels="places", generator_modulation=True)
    return untrained_run(tmp_path_factory.mktemp("controlled") / "run", config)


def untrained_run(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(0)
    weights, average = (Generator(config, SCHEMA).state_dict() for _ in range(2))
    state = {"config": Config(config, data=DataConfig(shards="/home/me/tiles-of-mine")).to_dict(), "schema": SCHEMA.to_dict()}
    writer.save(folder / "checkpoints", 1234, state=state, generator=weights, generator_ema=average)
    return folder


def inputs(batch: int, fractional: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    levels_BA = latents.levels_for(SCHEMA, 3, range(batch))
    return latents.latents_for(3, range(batch), 16), levels_BA.float() * 0.75 if fractional else levels_BA


@torch.no_grad()
def images(model: Path | Generator, batch: int, fractional: bool = False, raw: bool = False) -> torch.Tensor:
    generator = model if isinstance(model, Generator) else loading.load_for_sampling(model, ema=not raw).generator
    return generator(*inputs(batch, fractional))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error message of a command that exits with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


# The published checkpoint


@pytest.fixture(scope="module")
def state_256() -> dict[str, torch.Tensor]:
    """A published state dict without the copies that are ignored; must not be modified."""
    return {key: tensor for key, tensor in plain.checkpoint(256, 32).items() if not key.startswith("D_aug.")}


@dataclass
class Imported:
    file: Path
    run: Path


@pytest.fixture(scope="module")
def imported(state_256: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Imported]:
    """Saves a published checkpoint whose average differs from its raw generator, and imports it with the command."""
    folder = tmp_path_factory.mktemp("published")

    def make(size: int, generator: str) -> Imported:
        file, out = folder / f"pretrained_{size}.pt", folder / f"{generator}_{size}"
        if not file.exists():
            state = state_256 if size == 256 else plain.checkpoint(size, 32)
            torch.save({"GAN": state | {"GE.out_conv.bias": state["GE.out_conv.bias"] + 0.5}, "G_scaler": {}, "D_scaler": {}}, file)
        if not out.exists():
            assert main(["import-published", str(file), "--out", str(out), "--generator", generator]) == 0
        return Imported(file, out)

    return make


def sampled(model: Path, out: Path, *options: str) -> np.ndarray:
    """Two tiles sampled with the command."""
    assert sample_main([str(model), "--out", str(out), "--count", "2", "--precision", "fp32", *options]) == 0
    return np.stack([np.asarray(Image.open(out / f"{k:06d}.png")) for k in range(2)])


@pytest.mark.parametrize("size", [256, 512])
def test_published_checkpoint_is_sampled_by_the_command(imported: Callable[[int, str], Imported], tmp_path: Path, size: int) -> None:
    ema, raw = imported(size, "ema"), imported(size, "raw")
    model = published.load(ema.file)
    latents_BL, levels_BA = latents.latents_for(0, range(2), 32), latents.levels_for(PUBLISHED, 0, range(2))
    averaged_tiles, raw_tiles = (generate.generate(network, latents_BL, levels_BA) for network in (model.generator_ema, model.generator))
    assert averaged_tiles.shape == (2, size, size, 3) and (averaged_tiles != raw_tiles).mean() > 0.5
    for tiles, expected in (
        (sampled(ema.run, tmp_path / "a"), averaged_tiles),
        (sampled(ema.run, tmp_path / "b", "--no-ema"), raw_tiles),
        (sampled(raw.run / "checkpoints" / "images-000000000000", tmp_path / "c"), raw_tiles),
    ):
        differences = np.abs(tiles.astype(int) - expected)  # the command uses another memory format
        assert differences.max() <= 1 and (differences > 0).mean() < 1e-4


@dataclass
class RandomBatch:
    images_BCHW: torch.Tensor
    levels_BA: torch.Tensor
    cursor: int


def test_training_resumes_from_a_published_checkpoint(imported: Callable[[int, str], Imported], tmp_path: Path) -> None:
    source = imported(256, "ema")
    shutil.copytree(source.run, tmp_path / "run")
    settings = config.load(source.run / "config.yaml", [f"run.dir={tmp_path / 'run'}", "train.batch=2", "train.precision=fp32"])
    assert config.load(source.run / "config.yaml").run.dir == str(source.run)
    model, start = published.load(source.file), Trainer(settings, PUBLISHED, Runtime(settings))
    assert start.resume() and start.images == 0
    for mine, theirs in ((start.generator.module, model.generator), (start.discriminator.module, model.discriminator)):
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in mine.state_dict().items())
    rng = torch.Generator().manual_seed(0)
    for cursor in (0, 2):
        tiles = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8, generator=rng)
        terms = start.step([RandomBatch(tiles, latents.levels_for(PUBLISHED, 0, range(cursor, cursor + 2)), cursor)])
        assert all(term.isfinite() for term in terms.values())
    assert not start.skipped
    moved = (start.generator.module.to_image.weight - model.generator.to_image.weight).abs().mean()
    kept = (start.ema.average["to_image.bias"] - model.generator_ema.to_image.bias).abs().max()
    assert moved > 1e-5 and kept < 1e-4  # the imported average is not replaced by the raw weights, which differ by 0.5
    start.save()
    start.wait_for_checkpoint()
    again = Trainer(settings, PUBLISHED, Runtime(settings))
    assert again.resume() and again.images == 4
    assert len(again.generator.optimizer_state().shapes) == 3 * len(again.generator.parameters)


class Code:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("code-was-run",)


def altered_key(state: dict, file: Path) -> None:
    torch.save({"GAN": {key.replace("D.linear_emd.bias", "D.linear_end.bias"): tensor for key, tensor in state.items()}}, file)


def changed_shape(state: dict, file: Path) -> None:
    torch.save({"GAN": state | {"G.out_conv.weight": torch.zeros(3, 32, 1, 1)}}, file)


def missing_key(state: dict, file: Path) -> None:
    torch.save({"GAN": {key: tensor for key, tensor in state.items() if key != "GE.layers.4.2.0.fn.g"}}, file)


def code(state: dict, file: Path) -> None:
    torch.save({"GAN": state, "extra": Code()}, file)


def text(state: dict, file: Path) -> None:
    file.write_text("path,mitosis\n1.png,2\n")


def nothing(state: dict, file: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (altered_key, "unknown: D.linear_end.bias"),
        (changed_shape, "wrong: G.out_conv.weight has shape [3, 32, 1, 1], expected [3, 32, 3, 3]"),
        (missing_key, "missing: GE.layers.4.2.0.fn.g []"),
        (code, "refused: the file contains code"),
        (text, "not a checkpoint written by torch.save"),
        (nothing, "can't be read: No such file"),
    ],
)
def test_files_that_are_no_published_checkpoint_are_refused(
    make: Callable, message: str, state_256: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(state_256, tmp_path / "given.pt")
    said = refused(capsys, "import-published", "given.pt", "--out", "runs/new")
    assert "error: given.pt: " in said and message in said
    assert {path.name for path in tmp_path.iterdir()} <= {"given.pt"}


def test_a_folder_in_use_is_not_imported_into(imported: Callable[[int, str], Imported], capsys: pytest.CaptureFixture[str]) -> None:
    source = imported(256, "ema")
    before = {path: path.stat().st_mtime_ns for path in source.run.rglob("*")}
    assert f"{source.run}: the folder is not empty" in refused(capsys, "import-published", source.file, "--out", source.run)
    assert {path: path.stat().st_mtime_ns for path in source.run.rglob("*")} == before
    assert f"{source.file}: is a file" in refused(capsys, "import-published", source.file, "--out", source.file)
    assert "can't be created: Not a directory" in refused(capsys, "import-published", source.file, "--out", source.file / "run")


# The generator for the hub


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator of `run`, exported."""
    out = tmp_path_factory.mktemp("hub") / "generator"
    assert main(["generator", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be damaged."""
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


def test_generator_comes_back_from_its_folder(run: Path, folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    generator = AttributeGenerator.from_pretrained(folder)
    assert not generator.training
    assert (generator.schema, generator.latent_dim, generator.image_size) == (SCHEMA, 16, 32)
    assert torch.equal(images(generator, 4), images(run, 4))
    assert main(["generator", str(run), "--out", str(tmp_path / "raw"), "--no-ema"]) == 0
    assert torch.equal(images(AttributeGenerator.from_pretrained(str(tmp_path / "raw")), 4), images(run, 4, raw=True))
    assert not torch.equal(images(run, 4), images(run, 4, raw=True))


def test_generator_comes_back_by_its_hub_id(run: Path, folder: Path, tmp_path: Path) -> None:
    """From the hub library's cache, as after a download."""
    cached = tmp_path / "models--me--generator"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).symlink_to(folder)
    generator = AttributeGenerator.from_pretrained("me/generator", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(images(generator, 2), images(run, 2))


def test_a_generator_that_was_loaded_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    AttributeGenerator.from_pretrained(folder).save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "README.md").read_text() != (folder / "README.md").read_text()  # without the description of the data


def header_and_text(card: Path) -> tuple[dict, str]:
    _, header, body = card.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_model_card_states_the_facts(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, body = header_and_text(folder / "README.md")
    assert header["library_name"] == "attributegan" and "license" not in header
    rows = ["| 0 | `tone` | 0 dark, 1 light |", "| 1 | `size` | 0 none (not assessable), 1 low, 2 mid, 3 high |"]
    assert "\n".join(rows) in body and "not for diagnosis" in body and "torch.tensor([[1, 3]])" in body
    assert "Split `train` of the shard set `tiles-of-mine`; trained for 1,234 images" in body and "/home/me" not in body
    assert "Not recorded." in body and "Not specified." in body
    (tmp_path / "metrics.json").write_text('{"KID": 0.012, "features": "efficientnet-lite0"}')
    facts = ("--licence", "cc-by-4.0", "--data", "Bladder, {three} scanners.", "--metrics", str(tmp_path / "metrics.json"))
    capsys.readouterr()
    assert main(["generator", str(run), "--out", str(tmp_path / "complete"), *facts]) == 0
    assert "complete it" not in capsys.readouterr().out
    header, body = header_and_text(tmp_path / "complete" / "README.md")
    assert header["license"] == "cc-by-4.0" and "## Licence\n\ncc-by-4.0\n" in body
    assert "| KID | 0.012 |\n| features | efficientnet-lite0 |" in body and "## Training data\n\nBladder, {three} scanners.\n" in body


def test_code_of_the_model_card_runs(folder: Path) -> None:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("PATH_OR_HUB_ID", str(folder)), names)
    assert names["tiles"].shape == (4, 32, 32, 3) and names["tiles"].dtype == np.uint8


def test_exported_files_follow_the_umask(folder: Path, imported: Callable[[int, str], Imported]) -> None:
    mask = os.umask(0)
    os.umask(mask)
    files = [path for root in (folder, imported(256, "ema").run) for path in root.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def damage_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-9])


def drop_a_tensor(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["to_image.bias"]
    save_file(tensors, copy / "model.safetensors")


def pickle_instead(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(Code(), copy / "pytorch_model.bin")


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(copy: Path) -> None:
        tree = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(tree | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, r"model\.safetensors: the weights don't match config\.json"),
        (drop_a_tensor, r"model\.safetensors: the weights don't match.*to_image\.bias"),
        (pickle_instead, r"model\.safetensors: the weights don't match.*No such file"),
        (lambda copy: (copy / "config.json").unlink(), "copy: no config.json with `model` and `attributes`"),
        (lambda copy: (copy / "config.json").write_text('{"model":'), r"copy: config\.json is corrupted"),
        (edit_config(model={"image_size": 33}), r"config\.json: model\.image_size: 33 is not one of 32, 64"),
        (edit_config(model={"depth": 3}), r"config\.json: model\.depth: unknown option"),
        (edit_config(attributes=["tone"]), r"config\.json: attributes: expected a list of mappings"),
        (edit_config(attributes=[{"name": "tone", "levels": ["dark"]}]), "attribute tone: needs at least 2 levels"),
    ],
)
def test_damaged_folders_are_refused(copy: Path, damage: Callable, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    damage(copy)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        AttributeGenerator.from_pretrained(copy)
    assert not Path("code-was-run").exists()


def test_bad_input_of_the_hub_export_is_refused(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the folder is not empty" in refused(capsys, "generator", run, "--out", folder)
    assert "neither a checkpoint nor a run folder" in refused(capsys, "generator", tmp_path, "--out", tmp_path / "new")
    (tmp_path / "m.json").write_text('{"KID": [1, 2]}')
    for name, message in (("absent.json", "not a readable JSON file"), ("m.json", 'expected {"name": number or text')):
        said = refused(capsys, "generator", run, "--out", tmp_path / "new", "--metrics", tmp_path / name)
        assert f"--metrics {tmp_path / name}: " in said and message in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


# Graphs


def onnx_call(path: Path) -> tuple[Callable[..., torch.Tensor], str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("latents", ["batch", 16]), ("levels", ["batch", 2])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("images", ["batch", 3, 32, 32])]

    def call(latents_BL: torch.Tensor, levels_BA: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["images"], {"latents": latents_BL.numpy(), "levels": levels_BA.numpy()})[0])

    return call, session.get_modelmeta().custom_metadata_map["attributes"]


def program_call(path: Path) -> tuple[Callable[..., torch.Tensor], str]:
    extra = {"attributes": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), extra["attributes"]


@pytest.mark.parametrize(("command", "suffix", "read"), [("onnx", ".onnx", onnx_call), ("program", ".pt2", program_call)])
@pytest.mark.parametrize(("fractional", "model"), [(False, "run"), (True, "run"), (False, "controlled"), (True, "controlled")])
@torch.no_grad()
def test_graphs_give_the_networks_images(
    request: pytest.FixtureRequest, tmp_path: Path, command: str, suffix: str, read: Callable, fractional: bool, model: str
) -> None:
    run = request.getfixturevalue(model)
    file = tmp_path / f"generator{suffix}"
    file.write_text("an older one")
    assert main([command, str(run), "--out", str(file), *(["--fractional"] if fractional else ["--no-ema"])]) == 0
    assert list(tmp_path.iterdir()) == [file]
    call, attributes = read(file)
    assert AttributeSchema.from_dict(json.loads(attributes)) == SCHEMA
    for batch in (1, 5, 17):
        expected = images(run, batch, fractional, raw=not fractional)
        torch.testing.assert_close(call(*inputs(batch, fractional)), expected, atol=1e-5, rtol=0)
    if fractional:  # whole levels as floats
        latents_BL, levels_BA = inputs(4)
        torch.testing.assert_close(call(latents_BL, levels_BA.float()), images(run, 4), atol=1e-5, rtol=0)


def test_a_graph_that_differs_does_not_get_its_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "generator.pt2"
    file.write_text("an older one")
    load = torch.export.load

    class Shifted:
        def __init__(self, path: Path) -> None:
            self.call = load(path).module()

        def module(self) -> Callable[..., torch.Tensor]:
            return lambda *inputs: self.call(*inputs) * 1.01

    monkeypatch.setattr(graphs.torch.export, "load", Shifted)
    with pytest.raises(RuntimeError, match=r"generator\.pt2: images differ from the network's by \d\.\de-0\d, more than 0\.0001"):
        main(["program", str(run), "--out", str(file)])
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "an older one"


@pytest.fixture
def broken(run: Path, tmp_path: Path) -> Path:
    """A checkpoint with a NaN weight."""
    state, tensors = store.load(store.resolve(run), "generator_ema")
    tensors["generator_ema"]["to_image.bias"][1] = float("nan")
    return writer.save(tmp_path / "broken", 1, state=state, **tensors)


def test_bad_input_of_graphs_is_refused(
    run: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert "x.pt: give a file name that ends in .onnx" in refused(capsys, "onnx", run, "--out", tmp_path / "x.pt")
    assert "folder.onnx: is a folder" in refused(capsys, "onnx", run, "--out", tmp_path / "folder.onnx")
    assert f"{broken}: the generator produces non-finite images" in refused(capsys, "program", broken, "--out", tmp_path / "x.pt2")
    assert "neither a checkpoint nor a run" in refused(capsys, "program", tmp_path / "none", "--out", tmp_path / "x.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "ONNX needs onnxscript: pip install 'attributegan[export]'" in refused(capsys, "onnx", run, "--out", tmp_path / "x.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "folder.onnx"}


def test_leftovers_of_a_killed_export_are_removed(run: Path, tmp_path: Path) -> None:
    (tmp_path / ".writing-generator" / "generator").mkdir(parents=True)
    (tmp_path / ".writing-generator" / "generator" / "model.safetensors").write_text("half")
    assert main(["generator", str(run), "--out", str(tmp_path / "generator")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]
    AttributeGenerator.from_pretrained(tmp_path / "generator")
