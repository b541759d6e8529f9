"""The configuration tree: filling, overrides, refusals, and every file that ships."""

from pathlib import Path

import pytest
import yaml

from attributegan.config import Config, dump, from_dict, load

CONFIGS = Path(__file__).parents[3] / "configs"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {generator_lr: 1e-3}\ntrain: {batch: 8}\n")
    config = load(path, ["train.batch=16", "optim.betas=[0.0, 0.99]", "train.images=1e6", "data.shards=/a b/c"])
    assert config.optim.generator_lr == 1e-3 and config.optim.discriminator_lr == Config().optim.discriminator_lr
    assert config.train.batch == 16 and config.train.images == 1_000_000
    assert config.optim.betas == (0.0, 0.99) and config.data.shards == "/a b/c"


def test_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = from_dict({"model": {"image_size": 128}, "augment": {"policy": []}})
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"modle": {}}, "modle: unknown option"),
        ({"model": {"size": 64}}, "model.size: unknown option"),
        ({"model": [1]}, "model: expected a mapping"),
        ({"model": {"image_size": 100}}, "model.image_size: 100"),
        ({"model": {"latent_dim": 256}}, "model.latent_dim: 256 must equal"),
        ({"model": {"label_columns": "all"}}, "model.label_columns: 'all' is not one of padded, levels"),
        ({"model": {"generator_attention": 32}}, "model.generator_attention: expected a list"),
        ({"train": {"batch": "many"}}, "train.batch: expected a whole number"),
        ({"train": {"batch": 1.5}}, "train.batch: expected a whole number"),
        ({"train": {"batch": True}}, "train.batch: expected a whole number"),
        ({"train": {"batch": 9, "grad_accumulation": 2}}, "train.batch: 9 is not a multiple of train.grad_accumulation=2"),
        ({"train": {"channels_last": 1}}, "train.channels_last: expected true or false"),
        ({"optim": {"generator_lr": float("nan")}}, "optim.generator_lr: nan is not a finite number"),
        ({"optim": {"betas": [0.5]}}, "optim.betas"),
        ({"augment": {"policy": ["zoom"]}}, "augment.policy: 'zoom' is not one of translation, offset, cutout, color, hed"),
        ({"run": {"save_every": 0}}, "run.save_every"),
        ({"loss": {"r2_gamma": 1}}, "loss.r2_gamma: 1.0 requires loss.r1_gamma > 0"),
        ({"loss": {"auxiliary": 1}}, "loss.auxiliary: 1.0 does not fit model.auxiliary_heads=false"),
        ({"model": {"auxiliary_heads": True}, "loss": {"auxiliary": -1}}, "loss.auxiliary: -1.0 must be at least 0"),
        ({"loss": {"control": 1}}, "loss.control: 1.0 requires loss.auxiliary > 0"),
        ({"loss": {"diversity": -1}}, "loss.diversity: -1.0 must be at least 0"),
        ({"loss": {"residual": -1}}, "loss.residual: -1.0 must be at least 0"),
        ({"loss": {"contrastive": 0, "temperature": 0.5}}, "loss.temperature: 0.5 requires loss.contrastive > 0"),
        ({"augment": {"policy": [], "probability": 0.5}}, "augment.probability: 0.5 requires augment.policy"),
        ({"augment": {"policy": [], "target": 0.5}}, "augment.target: 0.5 requires augment.policy"),
        ({"augment": {"target": 1}}, "augment.target: 1.0 must be at least 0 and below 1"),
        ({"augment": {"adapt_images": 10}}, "augment.adapt_images: 10 requires augment.target > 0"),
    ],
)
def test_bad_options_are_named(tree: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        from_dict(tree)


@pytest.mark.parametrize("override", ["train.batch", "batch=4", "train.=4", ".batch=4", "train.batch=[1"])
def test_malformed_override_is_named(override: str) -> None:
    with pytest.raises(ValueError, match="train.batch|section.key=value|batch"):
        load(CONFIGS / "train" / "small.yaml", [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.images=8", "train.batch=0"], "'train.batch=0': train.batch: 0 must be at least 1"),
        (["train.batch=0", "train.batch=many"], "'train.batch=many': train.batch: expected a whole number"),
        (["modle.size=64"], "'modle.size=64': modle: unknown option"),
        (["model.size=64"], "'model.size=64': model.size: unknown option"),
        (["train.grad_accumulation=5"], "small.yaml with overrides: train.batch: 8 is not a multiple of train.grad_accumulation=5"),
        ([], "small.yaml: run.keep_last: -1 must be at least 0"),
    ],
)
def test_what_is_wrong_is_the_override_or_the_file(overrides: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("train: {batch: 8}\n" + ("" if overrides else "run: {keep_last: -1}\n"))
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "small.yaml", overrides)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(said)


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_that_ship_are_valid(path: Path) -> None:
    assert load(path) != Config()


def test_old_names_and_values_are_read_from_files_and_overrides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "old.yaml").write_text("data: {window: 3}\nmodel: {generator_levels: places}\n")
    found = load(tmp_path / "old.yaml", ["run.keep=2", "loss.contrastive_over=tile"])
    assert (found.data.shuffle_window, found.run.keep_last) == (3, 2)
    assert (found.model.generator_levels, found.loss.contrastive_over) == ("ordinal", "label")
    assert "old.yaml: data.window is now data.shuffle_window; the old name is accepted in this version only" in caplog.text
    assert "'loss.contrastive_over=tile': loss.contrastive_over=tile is now label; the old value is" in caplog.text
    (tmp_path / "both.yaml").write_text("data: {window: 3, shuffle_window: 3}\n")
    with pytest.raises(ValueError, match="both.yaml: data.window is now data.shuffle_window, which is also given; delete the old name"):
        load(tmp_path / "both.yaml")


def test_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="bad.yaml"):
        load(path)
    with pytest.raises(ValueError, match="missing.yaml"):
        load(tmp_path / "missing.yaml")


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_files_are_ones_that_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    tree = yaml.safe_load(path.read_text())
    assert load_config_from_file(str(path)).num_processes == tree["num_processes"]
