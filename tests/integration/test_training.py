"""Training as users start it: interrupted, resumed, on one and several processes, refused, diverging."""

import hashlib
import json
import logging
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from runs import (
    CONTROL,
    ROOT,
    SCRIPT,
    TINY,
    begin,
    differing,
    free_port,
    kill,
    largest_relative_difference,
    launcher,
    output,
    process_of,
    start,
    tensors,
    train,
    train_all,
    wait_for,
    write_config,
)
from safetensors.torch import load_file, save_file
from time_limits import seconds

from attributegan.attributes import PUBLISHED
from attributegan.checkpoint import store
from attributegan.checkpoint.loading import load_for_sampling
from attributegan.config import Config, from_dict
from attributegan.run_dir import status
from attributegan.sampling import generate, latents
from attributegan.training import trainer


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory):
    """The final tensors of an uninterrupted run, by number of processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {processes: train(shards, folder / f"run{processes}", processes=processes) for processes in (1, 2)}


INTERRUPTED = {  # signal to all processes, and the images at which it is sent
    "killed at its first step": (signal.SIGKILL, 8),
    "killed": (signal.SIGKILL, 40),
    "terminated": (signal.SIGTERM, 24),
    "interrupted": (signal.SIGINT, 56),
}


@pytest.fixture(scope="module")
def interrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory):
    """Folders of runs by number of processes: each is interrupted separately; one more launch resumes all to their end."""
    folders = {processes: tmp_path_factory.mktemp(f"interrupted{processes}") for processes in (1, 2)}
    for processes, folder in folders.items():
        for name, (how, at) in INTERRUPTED.items():
            process = start(shards, folder / name, processes=processes)
            wait_for(folder / name, at, process)
            assert kill(process, how) != 0
            if how is not signal.SIGKILL:
                stopped_at = json.loads((store.resolve(folder / name) / "state.json").read_text())["images"]
                assert stopped_at >= at, output(folder / name)
                assert "stopped and saved" in output(folder / name)
        train_all(shards, folder, *((name,) for name in INTERRUPTED), processes=processes)
    return folders


@pytest.fixture(scope="module")
def short(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of short runs from one launch."""
    folder = tmp_path_factory.mktemp("short")
    train_all(
        shards,
        folder,
        ("logged", "train.images=16", "run.grid_every=8"),
        ("penalised", "train.images=32", "loss.r1_every=4", "loss.adversarial=relativistic"),
        ("unused", "train.images=16", "data.attributes=[mitosis]", "model.generator_modulation=true"),
        ("traced", "run.trace=2"),
    )
    return folder


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_run_ends_with_the_same_bits(interrupted, undisturbed, processes: int, name: str) -> None:
    run = interrupted[processes] / name
    assert differing(tensors(run), undisturbed[processes]) == []
    images = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert images == list(range(8, 81, 8))


def test_run_with_every_term_goes_on_with_the_same_bits(shards: Path, tmp_path: Path) -> None:
    whole = train_all(shards, tmp_path, ("whole", *CONTROL, "train.images=32"), ("parts", *CONTROL, "train.images=16"))["whole"]
    assert differing(train(shards, tmp_path / "parts", *CONTROL, "train.images=32"), whole) == []


@pytest.mark.parametrize(("rank", "at"), [(0, 24), (1, 40), (1, 0)])
def test_killed_process_ends_the_job_by_name_and_the_next_start_resumes(
    shards: Path, tmp_path: Path, undisturbed, rank: int, at: int
) -> None:
    """Kills a rank at ``at`` images; 0: as soon as the process exists."""
    run = tmp_path / "run"
    process = start(shards, run, processes=2)
    if at:
        wait_for(run, at, process)
    os.kill(process_of(rank, process), signal.SIGKILL)
    assert process.wait(timeout=seconds(30)) != 0
    first_failure = output(run).partition("Root Cause")[2]
    assert f"rank      : {rank} " in first_failure and "exitcode  : -9" in first_failure
    assert differing(train(shards, run, processes=2), undisturbed[2]) == []


def test_dead_node_ends_the_job_on_the_other_one_by_name(shards: Path, tmp_path: Path) -> None:
    """Two launches act as two nodes; all processes of one are killed at once, with its launcher."""
    nodes, port = [], str(free_port())
    for node in range(2):
        where = ["--num_machines", "2", "--machine_rank", str(node), "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        run = tmp_path / "run" if node == 0 else tmp_path / "other"
        options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.world_size=2"]
        nodes.append(begin([*launcher("cpu", 2, *where), SCRIPT, *options, "train.images=8000"], run))
    wait_for(tmp_path / "run", 24, nodes[0])
    worker = process_of(1, nodes[1])
    kill(nodes[1], signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    assert nodes[0].wait(timeout=seconds(45)) != 0
    assert f"rank 1 ({socket.gethostname()}, process {worker}) has sent no heartbeat" in output(tmp_path / "run")


ALIKE = {  # runs of one and two processes, and the tolerated relative difference
    "fp32": (("optim.name=sgd", "optim.generator_lr=1e-4", "optim.discriminator_lr=1e-4"), 1e-6),
    "fp64": (("train.precision=fp64",), 1e-10),
    "accumulated": (("train.precision=fp64", "train.grad_accumulation=2"), 1e-10),
    "controlled": (("train.precision=fp64", *CONTROL), 1e-10),
    "adaptive": (
        (
            "train.precision=fp64",
            "train.batch=64",
            "train.images=320",
            "model.head_32=false",
            "model.discriminator_attention=[]",
            "loss.adversarial=relativistic",
            "loss.contrastive=0",
            "loss.reconstruction=0",
            "loss.r1_gamma=0",
            "augment.policy=[translation, hed]",
            "augment.target=0.001",
            "augment.adapt_images=500",
        ),
        1e-9,
    ),
}


@pytest.fixture(scope="module")
def alike_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {count: tmp_path_factory.mktemp(f"alike{count}") for count in (1, 2)}


@pytest.fixture(scope="module")
def alike(shards: Path, alike_folders: dict[int, Path]):
    """Tensors of the runs of `ALIKE` by number of processes and name, from one launch each."""
    runs = [(name, *overrides) for name, (overrides, _) in ALIKE.items()]
    return {count: train_all(shards, folder, *runs, processes=count) for count, folder in alike_folders.items()}


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_are_the_same_run_as_one(alike, name: str) -> None:
    """Trains 10 steps with gradient penalty and contrastive loss."""
    assert largest_relative_difference(alike[1][name], alike[2][name]) < ALIKE[name][1]


def test_adapted_probability_is_the_same_on_two_processes(alike, alike_folders: dict[int, Path]) -> None:
    states = [json.loads((store.resolve(folder / "adaptive") / "state.json").read_text())["augment"] for folder in alike_folders.values()]
    assert states[0] == pytest.approx(states[1]) and states[0]["probability"] == pytest.approx(256 / 500) and states[0]["images"] == 64


def test_accumulation_without_batch_statistics_in_play_is_the_sum_of_its_parts(shards: Path, tmp_path: Path) -> None:
    """Without generator and contrastive loss, the discriminator has the same gradients from 1 x 8 and 2 x 4."""
    still = ("train.precision=fp64", "train.images=8", "loss.contrastive=0", "optim.name=sgd", "optim.generator_lr=1e-30")
    whole, halves = train_all(shards, tmp_path, ("whole", *still), ("halves", *still, "train.grad_accumulation=2")).values()
    names = [name for name in whole if name.startswith("discriminator/")]
    # Generated tiles depend on the statistics of their micro-batch; parameters that only real tiles affect are equal.
    reached = [name for name in names if "decoder" in name]
    assert reached
    assert largest_relative_difference({n: whole[n] for n in reached}, {n: halves[n] for n in reached}) < 1e-12


def test_finished_run_started_again_does_nothing_and_longer_goes_on(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = train_all(shards, tmp_path, ("run", "train.images=16"), ("other", "train.images=24"))
    longer = train_all(shards, tmp_path, ("run", "train.images=16"), ("run", "train.images=24"))["run"]
    assert differing(tensors(run, 16), first["run"]) == [] == differing(longer, first["other"])
    assert [path.name[-2:] for path in sorted((run / "checkpoints").glob("images-*"))] == ["16", "24"]


def test_attributes_that_a_training_does_not_use_move_nothing(short: Path) -> None:
    for ema in (True, False):
        model = load_for_sampling(short / "unused", ema=ema)
        latents_BL = latents.latents_for(0, [0], model.config.model.latent_dim)
        tiles = [generate.generate(model.generator.eval(), latents_BL, torch.tensor([levels])) for levels in MOVED]
        assert (tiles[0] == tiles[1]).all() and (tiles[0] != tiles[2]).any()


MOVED = [[1, 1, 1, 1, 1], [4, 1, 1, 2, 3], [1, 1, 3, 1, 1]]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.batch=7", "train.grad_accumulation=2"], "train.batch: 7 is not a multiple of train.grad_accumulation=2"),
        (["train.world_size=3"], "train.world_size: 3 were asked for, the launcher gave 1"),
        (["data.shards=nowhere"], "nowhere"),
        (["model.attributes=SCHEMA"], "necrosis"),
        (["data.split=absent"], "absent"),
        (["data.attributes=[necrosis]"], "data.attributes: necrosis: not in the shards, which have cell_crowding"),
        (["loss.diversity=1", "train.batch=6", "train.grad_accumulation=2"], "train.batch: loss.diversity and loss.residual compare pairs"),
        (["loss.residual=1", "train.batch=6", "train.grad_accumulation=2"], "each of 1 processes gets 3 tiles per micro-batch"),
    ],
)
def test_bad_input_is_refused_with_status_2(
    shards: Path, tmp_path: Path, overrides: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.train import main

    (tmp_path / "schema.yaml").write_text("necrosis: [absent, present]\n")
    overrides = [override.replace("SCHEMA", str(tmp_path / "schema.yaml")) for override in overrides]
    run = tmp_path / "run"
    options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "train.processes=1", *overrides]
    logging.getLogger().handlers.clear()  # of runs in this process, whose streams are closed
    assert main(options) == 2
    said = "".join(capsys.readouterr())
    assert named in said and "Traceback" not in said


def test_checkpoint_of_another_network_is_refused(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=8")
    assert start(shards, run, "train.images=16", "model.proxy=published").wait(timeout=seconds(120)) == 2
    assert "model.proxy is 'published', was 'level'" in output(run)
    assert status.read(run).state == "finished"  # a refused start does not change it


def test_changed_options_of_a_resumed_run_are_logged(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=8")
    train(shards, run, "train.images=16", "train.seed=3")
    assert "option changed since the checkpoint: train.seed is 3, was 0" in output(run) and output(run).count("option changed") == 1


def test_an_option_that_a_checkpoint_is_too_old_for_was_at_its_default() -> None:
    now = Config().to_dict()
    before = {section: dict(values) for section, values in now.items()}
    del before["loss"]["residual"]
    assert trainer._changed_options(before, now) == []
    now["loss"]["residual"] = 1.0
    now["train"]["images"] += 8  # not a change of the recipe
    assert trainer._changed_options(before, now) == ["loss.residual is 1.0, was 0.0"]


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(shards: Path, tmp_path: Path, undisturbed) -> None:
    run = tmp_path / "run"
    train(shards, run, "train.images=48")
    newest = max((run / "checkpoints").glob("images-*"))
    (newest / "generator.safetensors").write_bytes(b"")
    assert differing(train(shards, run), undisturbed[1]) == []
    assert f"skipping corrupted checkpoint: {newest / 'generator.safetensors'}" in output(run)


def test_run_that_diverges_stops_and_the_last_good_checkpoint_stands(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = train(shards, run, "train.images=16")
    process = start(shards, run, "train.max_nonfinite=3", "optim.discriminator_lr=1e38", "optim.name=sgd")
    assert process.wait(timeout=seconds(120)) not in (0, 2)
    assert "3 consecutive steps had a non-finite loss or gradient" in output(run)
    assert differing(tensors(run), good) == []


def test_options_of_speed_and_memory_train(shards: Path, tmp_path: Path) -> None:
    """bf16, activation checkpointing and torch.compile give finite weights; checkpointing the same as without."""
    options = {
        "plain": "train.compile=false",
        "recomputed": "train.activation_checkpointing=true",
        "window": "data.shuffle_window=2",
        "assessable": "data.assessable_only=true",
        "bf16": "train.precision=bf16",
        "fp16": "train.precision=fp16",
        "rows": "train.channels_last=false",
        "compiled": "train.compile=true",
    }
    trained = train_all(shards, tmp_path, *((name, "train.images=16", option) for name, option in options.items()))
    assert largest_relative_difference(trained["plain"], trained["recomputed"]) < 1e-5
    assert largest_relative_difference(trained["plain"], trained["window"]) > 1e-3
    for name, found in trained.items():
        assert all(tensor.isfinite().all() for tensor in found.values()), name


def test_log_metrics_grids_and_configuration_are_there(short: Path) -> None:
    run = short / "logged"
    assert {path.name for path in (run / "grids").iterdir()} == {"attributes-000000000008.png", "attributes-000000000016.png"}
    assert list((run / "tensorboard").glob("events.*"))
    assert "img/s" in (run / "train.log").read_text()
    assert "images: 16" in (run / "config.yaml").read_text()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["images"] == 16 and line["discriminator/r1"] > 0
    assert all(json.loads((run / "status.json").read_text())["losses"].values())


def test_penalties_of_some_steps_are_in_every_line(short: Path) -> None:
    run = short / "penalised"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and len({line["discriminator/r1"] for line in lines}) == 1
    assert all(json.loads((run / "status.json").read_text())["losses"].values())


def test_a_checkpoint_of_another_version_of_a_network_is_refused_by_name(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.train import main

    control = ("model.auxiliary_heads=true", "loss.auxiliary=1", "data.workers=0")
    train(shards, tmp_path, "train.images=8", *control)
    found = store.resolve(tmp_path)
    path, manifest = found / "discriminator.safetensors", json.loads((found / "manifest.json").read_text())
    tensors = load_file(path)
    del tensors["auxiliary.logits.averaged_bias"]
    save_file(tensors, path)
    manifest[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (found / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    options = ["--config", str(write_config(tmp_path)), f"data.shards={shards}", f"run.dir={tmp_path}", "train.images=16", *control]
    logging.getLogger().handlers.clear()  # of runs in this process, whose streams are closed
    assert main(options) == 2
    said = "".join(capsys.readouterr())
    assert "the discriminator has no tensor auxiliary.logits.averaged_bias" in said


def test_a_checkpoint_from_before_an_option_is_of_its_default(tmp_path: Path) -> None:
    control = {"model": TINY["model"] | {"auxiliary_heads": True}, "loss": {"auxiliary": 1}}
    config, schema = from_dict(TINY | control), PUBLISHED
    saved = {"model": config.to_dict()["model"]}
    del saved["model"]["generator_levels"]
    trainer._check_model(tmp_path, {"config": saved, "schema": schema.to_dict()}, config, schema)
    other = from_dict(TINY | {"model": TINY["model"] | {"generator_levels": "ordinal"}})
    with pytest.raises(ValueError, match="model.generator_levels is 'ordinal', was 'onehot'"):
        trainer._check_model(tmp_path, {"config": saved, "schema": schema.to_dict()}, other, schema)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=lambda path: path.name)
def test_every_training_configuration_that_ships_starts(shards: Path, tmp_path: Path, path: Path) -> None:
    """Trains each for one step, reduced to 32 px and few channels."""
    from launch.train import main

    narrow = ["model.image_size=32", "model.latent_dim=16", "model.fmap_max=16", "model.fmap_inverse_coef=7", "model.attention_heads=1"]
    short = ["train.images=4", "train.batch=4", "data.workers=0", f"data.shards={shards}", f"run.dir={tmp_path / 'run'}"]
    assert main(["--config", str(path), *narrow, *short]) == 0
    assert store.resolve(tmp_path / "run").name == "images-000000000004"


def test_steps_can_be_traced(short: Path) -> None:
    run = short / "traced"
    (trace,) = (run / "tensorboard").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"ProfilerStep#3", "ProfilerStep#4"} <= names and not {"ProfilerStep#2", "ProfilerStep#5"} & names
    assert "aten::convolution_backward" in names


@pytest.mark.parametrize("network", ["generator", "discriminator", "ema"])
def test_weights_that_are_not_finite_replace_no_good_ones(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    from attributegan.training.trainer import Trainer
    from launch.train import main

    step = Trainer.step

    def step_and_spoil(self: Trainer, batches: object) -> dict:
        terms = step(self, batches)
        if self.images == 16:
            state = self.ema.average if network == "ema" else getattr(self, network).module.state_dict()
            weight = next(iter(state.values()))
            weight[(0,) * weight.dim()] = float("nan")
        return terms

    monkeypatch.setattr(Trainer, "step", step_and_spoil)
    run = tmp_path / "run"
    options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "run.save_every=8", "data.workers=0"]
    assert main([*options, "train.images=24"]) == 3
    assert "weights at 16 images are not finite" in capsys.readouterr().err
    assert store.resolve(run).name == "images-000000000008"


def test_start_removes_what_a_kill_left_half_written(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "grids").mkdir(parents=True)
    left = [run / ".writing-status.json-host-1", run / ".writing-metrics.jsonl", run / "grids" / ".writing-attributes-000000000008.png"]
    for path in left:
        path.write_text("half")
    train(shards, run, "train.images=8")
    assert not [path for path in left if path.exists()]
