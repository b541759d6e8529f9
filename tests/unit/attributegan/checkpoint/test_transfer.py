"""Starting from other weights: what a new network takes, shown by the outputs that it then shares with the old one, and what it refuses."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from untrained_run import untrained_run

from attributegan.attributes import PUBLISHED, Attribute, AttributeSchema
from attributegan.checkpoint import transfer
from attributegan.checkpoint.weight_matching import Labels, Taken, match
from attributegan.config import ModelConfig
from attributegan.export.hub import export_generator
from attributegan.models import Discriminator, Generator

GRADE = Attribute("grade", ("none", "low", "high"), 0)
SIZE = Attribute("size", ("small", "large"))
OLD = AttributeSchema((GRADE, SIZE))
NEW = AttributeSchema((Attribute("necrosis", ("absent", "some", "all")), SIZE, GRADE))
LONGER = AttributeSchema((SIZE, Attribute("grade", ("none", "low", "middle", "high"), 0)))

PLAIN = ModelConfig(image_size=32, latent_dim=16, fmap_max=16, fmap_inverse_coef=6, generator_attention=(), attention_heads=1)
LEVELS = dataclasses.replace(PLAIN, label_columns="levels", proxy="level", generator_modulation=True)
CONTROLLED = dataclasses.replace(LEVELS, generator_levels="ordinal", conditioning="projection", auxiliary_heads=True, head_32=False)
MODELS = {"published": PLAIN, "levels": LEVELS, "controlled": CONTROLLED}


def generator_of(model: ModelConfig, schema: AttributeSchema, seed: int) -> Generator:
    """A generator with random weights everywhere, also where modulation starts at zero."""
    torch.manual_seed(seed)
    generator = Generator(model, schema).eval()
    for stage in generator.stages:
        if stage.modulate is not None:
            torch.nn.init.normal_(stage.modulate.weight, std=0.2)
    return generator


def discriminator_of(model: ModelConfig, schema: AttributeSchema, seed: int) -> Discriminator:
    torch.manual_seed(seed)
    discriminator = Discriminator(model, schema).eval()
    if discriminator.auxiliary is not None:  # averages start at zero
        for name, buffer in discriminator.auxiliary.named_buffers():
            if "averaged" in name:
                torch.nn.init.normal_(buffer, std=0.2)
    return discriminator


def transferred(
    network: str, old: torch.nn.Module, new: torch.nn.Module, source: tuple[ModelConfig, AttributeSchema], target: Labels
) -> Taken:
    taken = match(network, old.state_dict(), Labels(*source), new.state_dict(), target)
    new.load_state_dict(taken.tensors)
    return taken


def levels(schema: AttributeSchema, **named: str) -> Tensor:
    """One row of levels by name; others are unknown."""
    return torch.tensor([[a.levels.index(named[a.name]) if a.name in named else -1 for a in schema.attributes]])


@pytest.mark.parametrize("kind", MODELS)
def test_same_model_takes_everything(kind: str) -> None:
    model = MODELS[kind]
    for network, of in (("generator_ema", generator_of), ("discriminator", discriminator_of)):
        old, new = of(model, OLD, 1), of(model, OLD, 2)
        taken = transferred(network, old, new, (model, OLD), Labels(model, OLD))
        assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())
        count = len(old.state_dict())
        assert str(taken) == f"{count} of {count} tensors taken (100.0% of the weights)" and taken.layers > 5


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("named", [{"size": "large"}, {"grade": "none"}, {"grade": "high", "size": "small"}, {}])
def test_generator_knows_the_attributes_of_its_source(kind: str, named: dict[str, str]) -> None:
    model = MODELS[kind]
    old, new = generator_of(model, OLD, 1), generator_of(model, NEW, 2)
    taken = transferred("generator", old, new, (model, OLD), Labels(model, NEW))
    assert taken.partly and "in part: from_label.conv" in str(taken) and "new:" not in str(taken)
    latents = torch.randn(2, model.latent_dim)
    expected = old(latents, levels(OLD, **named).expand(2, -1))
    torch.testing.assert_close(new(latents, levels(NEW, **named).expand(2, -1)), expected)
    assert (new(latents, levels(NEW, **named, necrosis="all").expand(2, -1)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("schema", [NEW, LONGER], ids=["attribute", "level"])
def test_discriminator_knows_the_levels_of_its_source(kind: str, schema: AttributeSchema) -> None:
    model = MODELS[kind]
    old, new = discriminator_of(model, OLD, 1), discriminator_of(model, schema, 2)
    transferred("discriminator", old, new, (model, OLD), Labels(model, schema))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    named = {"size": "large", "grade": "high"}
    before, after = old(images, levels(OLD, **named).expand(2, -1)), new(images, levels(schema, **named).expand(2, -1))
    if kind == "controlled":
        torch.testing.assert_close(after.logits, before.logits)
        for attribute, logits in zip(OLD.attributes, old.auxiliary(images, train_levels=False), strict=True):
            found = new.auxiliary(images, train_levels=False)[schema.names.index(attribute.name)]
            there = [new_level(schema, attribute, level) for level in range(len(attribute.levels))]
            torch.testing.assert_close(found[:, there + [k + found.shape[1] // 2 for k in there]], logits)  # real, generated
    elif kind == "levels":
        columns = [
            int(new.columns.offsets[schema.names.index(attribute.name)]) + new_level(schema, attribute, level)
            for attribute in OLD.attributes
            for level in range(len(attribute.levels))
        ]
        for head, head_before in ((after.logits, before.logits), (after.logits_32, before.logits_32)):
            assert head is not None and head_before is not None
            torch.testing.assert_close(head[:, columns], head_before)
    if max(OLD.num_levels) == max(schema.num_levels) and kind != "published":
        for a, attribute in enumerate(OLD.attributes):
            b = schema.names.index(attribute.name)
            for x, y in ((before.proxy, after.proxy), (before.embedding, after.embedding)):
                parts = x.chunk(len(OLD.names), dim=1)[a], y.chunk(len(schema.names), dim=1)[b]
                torch.testing.assert_close(*(part / part.norm(dim=1, keepdim=True) for part in parts))
    if kind == "published":  # columns are padded to the largest attribute
        for k, attribute in enumerate(OLD.attributes):
            first = schema.names.index(attribute.name) * max(schema.num_levels)
            for level in range(len(attribute.levels)):
                column, column_before = first + new_level(schema, attribute, level), k * max(OLD.num_levels) + level
                torch.testing.assert_close(after.logits[:, column], before.logits[:, column_before])


def new_level(schema: AttributeSchema, attribute: Attribute, level: int) -> int:
    return schema.attributes[schema.names.index(attribute.name)].levels.index(attribute.levels[level])


def test_encodings_that_differ_are_not_mixed() -> None:
    old, new = generator_of(LEVELS, OLD, 1), generator_of(CONTROLLED, OLD, 2)
    before = new.state_dict()["from_label.conv.weight"].clone()
    taken = transferred("generator", old, new, (LEVELS, OLD), Labels(CONTROLLED, OLD))
    assert torch.equal(new.state_dict()["from_label.conv.weight"], before) and "new: from_label.conv" in str(taken)
    assert "from_label.conv.bias" not in taken.names  # of no use without the weights


def test_attributes_that_are_not_trained_keep_their_weights() -> None:
    new = generator_of(CONTROLLED, OLD, 2)
    new.zero_label_weights([0])
    transferred("generator", generator_of(CONTROLLED, OLD, 1), new, (CONTROLLED, OLD), Labels(CONTROLLED, OLD, ("size",)))
    assert not new.state_dict()["from_label.conv.weight"][:3].any() and new.state_dict()["from_label.conv.weight"][3:].any()


def resized(image_size: int, raised: int = 0) -> ModelConfig:
    latent = min(2 ** (4 + raised), 16 * 2**raised)
    return dataclasses.replace(LEVELS, image_size=image_size, fmap_inverse_coef=6 + raised, fmap_max=16 * 2**raised, latent_dim=latent)


def test_larger_images_take_stages_of_equal_resolution() -> None:
    small, large = dataclasses.replace(LEVELS, fmap_inverse_coef=7), dataclasses.replace(LEVELS, fmap_inverse_coef=7, image_size=64)
    old, new = generator_of(small, OLD, 1), generator_of(large, OLD, 2)
    taken = transferred("generator", old, new, (small, OLD), Labels(large, OLD))
    latents, row = torch.randn(2, 16), levels(OLD, size="small").expand(2, -1)
    maps: dict[str, Tensor] = {}
    for name, generator in (("old", old), ("new", new)):
        generator.stages[2].register_forward_hook(lambda module, inputs, output, name=name: maps.__setitem__(name, output))
        generator(latents, row)
    torch.testing.assert_close(maps["new"], maps["old"])
    assert "new: stages.3, to_image" in str(taken)

    old_d, new_d = discriminator_of(small, OLD, 1), discriminator_of(large, OLD, 2)
    transferred("discriminator", old_d, new_d, (small, OLD), Labels(large, OLD))
    maps_BCHW = torch.randn(2, *old_d.stages[1].down.weight.shape[1:2], 16, 16)
    torch.testing.assert_close(new_d.stages[2](maps_BCHW), old_d.stages[1](maps_BCHW))
    torch.testing.assert_close(new_d.head(torch.ones(1, 16, 8, 8)), old_d.head(torch.ones(1, 16, 8, 8)))


def test_wider_and_larger_networks_take_stages_counted_from_the_image() -> None:
    """64 px with fmap_inverse_coef raised by 1, as docs/training.md recommends: no stage of equal resolution has equal widths."""
    small, large = resized(32), resized(64, raised=1)
    old, new = generator_of(small, OLD, 1), generator_of(large, OLD, 2)
    taken = transferred("generator", old, new, (small, OLD), Labels(large, OLD))
    for k in (1, 2):  # the input of stage 0 has the channels of latent and levels
        assert torch.equal(new.stages[k + 1].conv.weight, old.stages[k].conv.weight)
    assert torch.equal(new.to_image.weight, old.to_image.weight) and "stages.0" in str(taken)
    old_d, new_d = discriminator_of(small, OLD, 1), discriminator_of(large, OLD, 2)
    transferred("discriminator", old_d, new_d, (small, OLD), Labels(large, OLD))
    assert torch.equal(new_d.stages[0].down.weight, old_d.stages[0].down.weight)


@pytest.mark.parametrize(
    ("source", "target", "stages", "halvings"), [(256, 512, 0, 1), (512, 1024, 0, 1), (128, 512, 1, 2), (1024, 256, 0, -2)]
)
def test_discriminators_above_256_pixels_shift_halvings_and_stages_apart(source: int, target: int, stages: int, halvings: int) -> None:
    from attributegan.checkpoint.weight_matching import _shifts

    models = [dataclasses.replace(ModelConfig(), image_size=size) for size in (source, target)]
    assert _shifts("discriminator", *models)[0] == {"stages": stages, "halvings": halvings}


RUNTIME: Any = SimpleNamespace(run_on_rank0=lambda work: work(), run_and_raise_everywhere=lambda work: work())


def load(init: Path, model: ModelConfig, schema: AttributeSchema, caplog: pytest.LogCaptureFixture) -> tuple[dict, dict, str]:
    """Returns the loaded state dicts, the record and the log."""
    generator, discriminator = generator_of(model, schema, 5).state_dict(), discriminator_of(model, schema, 5).state_dict()
    loaded: dict[str, dict[str, Tensor]] = {}
    initial = {"generator": generator, "generator_ema": generator, "discriminator": discriminator}
    networks = {
        name: (state, lambda read, name=name, state=state: loaded.__setitem__(name, {key: read(key) for key in state}))
        for name, state in initial.items()
    }
    with caplog.at_level(logging.INFO, logger="attributegan"):
        record = transfer.load_weights(str(init), networks, Labels(model, schema), RUNTIME)
    return loaded, record, caplog.text


def test_exported_generator_starts_both_generators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    untrained_run(tmp_path / "run", 5)
    exported = export_generator(tmp_path / "run", tmp_path / "exported")
    loaded, record, text = load(tmp_path / "exported", dataclasses.replace(PLAIN, attention_heads=8), PUBLISHED, caplog)
    assert set(loaded) == {"generator", "generator_ema"}
    for weights in loaded.values():
        assert all(torch.equal(tensor, weights[name]) for name, tensor in exported.state_dict().items())
    assert record["path"] == str(tmp_path / "exported") and len(record["sha256"]) == 64
    assert "generator_ema: 37 of 37 tensors taken (100.0% of the weights)" in text
    assert "discriminator: not in the source; starts as usual" in text


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("absent", "absent is not a folder"),
        ("empty", "neither a checkpoint nor a run folder"),
        ("spoiled", "config.json: is not the description"),
    ],
)
def test_sources_that_are_none_are_refused(tmp_path: Path, name: str, named: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    untrained_run(tmp_path / "run", 5)
    export_generator(tmp_path / "run", tmp_path / "spoiled")
    (tmp_path / "spoiled" / "config.json").write_text(json.dumps({"model": {}, "attributes": "none"}))
    with pytest.raises(ValueError, match=named):
        load(tmp_path / name, PLAIN, OLD, caplog)


def test_damaged_weights_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    untrained_run(tmp_path / "run", 5)
    export_generator(tmp_path / "run", tmp_path / "exported")
    weights = tmp_path / "exported" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"model.safetensors: can't be read"):
        load(tmp_path / "exported", PLAIN, OLD, caplog)


def test_weights_of_which_nothing_fits_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    untrained_run(tmp_path / "run", 5)
    export_generator(tmp_path / "run", tmp_path / "exported")
    wider = dataclasses.replace(PLAIN, fmap_max=32, latent_dim=32, fmap_inverse_coef=7)
    with pytest.raises(ValueError, match="no layer of .*exported fits this model"):
        load(tmp_path / "exported", wider, OLD, caplog)
