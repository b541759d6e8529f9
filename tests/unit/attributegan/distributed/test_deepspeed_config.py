"""The DeepSpeed configuration from accelerate's files, DeepSpeed's files and options; rejected settings name file, key and fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT

from attributegan.config import Config, from_dict
from attributegan.distributed import launcher
from attributegan.distributed.deepspeed_config import NetworkSharding, resolve

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no"}
WORLD = 2
Write = Callable[[str, Any], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a JSON file and returns its path."""

    def write(name: str, tree: Any) -> str:
        (tmp_path / name).write_text(json.dumps(tree))
        return str(tmp_path / name)

    return write


def config(**sections: dict[str, Any]) -> Config:
    train = {"batch": 8, "precision": "fp32"} | sections.pop("train", {})
    return from_dict({"loss": {"r1_gamma": 1.0}, "train": train} | sections)


def zero(stage: Any, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage} | more}


def environment(tmp_path: Path, kind: str, **tree: Any) -> dict[str, str]:
    """The environment that accelerate's own code sets for a configuration file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = tmp_path / "accelerate.yaml"
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "mixed_precision": "no"}
    file.write_text(yaml.safe_dump(common | tree | {"distributed_type": kind}))
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "--main_process_port", "0", "script.py"])
    arguments = _validate_launch_command(arguments)[0]
    arguments.deepspeed_fields_from_accelerate_config = ""
    environ = prepare_deepspeed_cmd_env(arguments)[1] if kind == "DEEPSPEED" else prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environ.items() if name.startswith("ACCELERATE_")}


def stages(networks: dict[str, NetworkSharding]) -> tuple[int, int]:
    return networks["generator"].stage, networks["discriminator"].stage


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "multinode_zero1", "multinode_zero2", "multinode_zero3"])
def test_files_that_ship(name: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{name}.yaml").read_text())
    stage = int(name[-1])
    assert stages(resolve(config(), environment(tmp_path, "DEEPSPEED", **tree | {"num_processes": 2}), WORLD)) == (stage, min(stage, 2))


@pytest.mark.parametrize("name", ["cpu", "ddp", "multinode_ddp"])
def test_files_that_ship_without_deepspeed(name: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{name}.yaml").read_text())
    assert stages(resolve(config(), environment(tmp_path, "MULTI_GPU", **tree | {"num_processes": 2}), WORLD)) == (0, 0)


def test_all_that_accelerate_config_asks_about(tmp_path: Path) -> None:
    """A file with all fields that `accelerate config` writes for stage 3, with both offloads, accumulation, clipping and bf16."""
    environ = environment(
        tmp_path,
        "DEEPSPEED",
        mixed_precision="bf16",
        deepspeed_config={
            "zero_stage": 3,
            "offload_optimizer_device": "cpu",
            "offload_param_device": "cpu",
            "zero3_init_flag": True,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5,
            "zero3_save_16bit_model": False,
        },
    )
    configured = config(train={"batch": 8, "grad_accumulation": 2, "precision": "bf16"}, optim={"grad_clip": 0.5})
    networks = resolve(configured, environ, WORLD)
    assert networks["generator"].deepspeed == {
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # otherwise DeepSpeed replaces the optimizer by its own
        "steps_per_print": 10**9,
    }
    assert networks["discriminator"].deepspeed["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def test_what_accelerate_config_writes_unasked_says_nothing(tmp_path: Path, write: Write) -> None:
    unasked = {"zero_stage": 2, "offload_optimizer_device": "none", "offload_param_device": "none", "gradient_accumulation_steps": 1}
    environ = environment(tmp_path, "DEEPSPEED", deepspeed_config=unasked)
    networks = resolve(config(), environ, WORLD)
    assert networks["generator"].deepspeed["zero_optimization"] == {"stage": 2}
    assert networks["generator"].deepspeed["gradient_clipping"] == 0  # none; accelerate's "auto" would be 1
    own = write("own.json", zero(2, offload_optimizer={"device": "cpu", "pin_memory": True}))
    networks = resolve(config(deepspeed={"generator": own}), environ, WORLD)
    assert networks["generator"].deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert networks["discriminator"].deepspeed["zero_optimization"] == {"stage": 2}


def test_a_deepspeed_file_of_accelerate_is_for_both(tmp_path: Path, write: Write) -> None:
    file = write(
        "both.json", zero(3, reduce_bucket_size=1000, offload_param={"device": "cpu"}) | {"train_batch_size": "auto", "bf16": None}
    )
    environ = environment(tmp_path, "DEEPSPEED", deepspeed_config={"deepspeed_config_file": file, "zero3_init_flag": True})
    networks = resolve(config(), environ, WORLD)
    assert stages(networks) == (3, 2)  # the discriminator has a penalty, which stage 3 can't do
    assert networks["generator"].deepspeed["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert networks["discriminator"].deepspeed["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert networks["generator"].deepspeed["train_batch_size"] == 8


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_files_that_ship(file: Path) -> None:
    generator = resolve(config(deepspeed={"generator": str(file)}), {}, WORLD)["generator"]
    assert generator.stage == int(file.stem.removesuffix("_offload")[-1])
    assert generator.deepspeed["zero_optimization"] == json.loads(file.read_text())["zero_optimization"]


@pytest.mark.parametrize("generator", [0, 1, 2, 3])
@pytest.mark.parametrize("discriminator", [0, 1, 2])
def test_files_by_network(generator: int, discriminator: int, write: Write) -> None:
    own = {"generator": write("g.json", zero(generator)), "discriminator": write("d.json", zero(discriminator))}
    assert stages(resolve(config(deepspeed=own), {}, WORLD)) == (generator, discriminator)
    assert stages(resolve(config(deepspeed={"generator": own["generator"]}), {}, WORLD)) == (generator, 0)


def test_both_at_stage_3_without_a_penalty(write: Write) -> None:
    file = write("three.json", zero(3))
    own = {"generator": file, "discriminator": file}
    assert stages(resolve(config(loss={"r1_gamma": 0.0}, deepspeed=own), {}, WORLD)) == (3, 3)


def test_discriminator_may_be_lower_than_accelerate_says(write: Write) -> None:
    own = {"discriminator": write("d.json", zero(1))}
    assert stages(resolve(config(deepspeed=own), DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, WORLD)) == (3, 1)


BAD_FILES = {  # content of the generator's file, expected message
    "no stage": ({}, "zero_optimization.stage is missing; set it to"),
    "stage auto": (zero("auto"), "zero_optimization.stage is missing"),
    "stage 4": (zero(4), "zero_optimization.stage: 4 is not a ZeRO stage"),
    "stage word": (zero("two"), "zero_optimization.stage: two is not a ZeRO stage"),
    "list": ([], "expected a mapping with blocks such as zero_optimization"),
    "block": ({"zero_optimization": True}, "zero_optimization: expected a mapping of settings, got True"),
    "fp16 block": (zero(2) | {"fp16": True}, "fp16: expected a mapping"),
    "offload block": (zero(2, offload_optimizer="cpu"), "zero_optimization: offload_optimizer: expected a mapping of settings, got 'cpu'"),
    "nvme": (zero(3, offload_param={"device": "nvme"}), "offload_param to nvme is not supported by checkpoints; use cpu, or none"),
    "offload at 0": (zero(0, offload_optimizer={"device": "cpu"}), "offload_optimizer requires a ZeRO stage above 0 for the generator"),
    "optimizer": (zero(2) | {"optimizer": {"type": "Adam"}}, "optimizer: remove this block"),
    "scheduler": (zero(2) | {"scheduler": {}}, "scheduler: remove this block"),
    "autocast": (
        zero(2) | {"torch_autocast": {"enabled": True}},
        "torch_autocast: remove this block; the precision is set by train.precision",
    ),
    "mics": (zero(3, mics_shard_size=2), "zero_optimization.mics_shard_size: remove it"),
    "quantized": (zero(2, zero_quantized_gradients=True), "zero_optimization.zero_quantized_gradients: remove it"),
    "batch": (zero(2) | {"train_batch_size": 16}, "train_batch_size is 16, train.batch is 8; make them equal, or remove"),
    "micro batch": (zero(2) | {"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8, train.batch / (train.grad_acc"),
    "grad_accumulation": (zero(2) | {"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, train.grad_accumulation is 1"),
    "clipping": (zero(2) | {"gradient_clipping": 1.0}, "gradient_clipping is 1.0, optim.grad_clip is 0"),
    "clipping at 0": (zero(0) | {"gradient_clipping": 1.0}, "gradient_clipping is 1.0, optim.grad_clip is 0"),
    "not a number": (zero(2) | {"gradient_clipping": "much"}, "gradient_clipping is much, optim.grad_clip is 0"),
    "bf16": (zero(2) | {"bf16": {"enabled": True}}, "bf16.enabled is True, train.precision is fp32"),
    "fp16": (zero(2) | {"fp16": {"enabled": True}}, "fp16.enabled is True, train.precision is fp32"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_refused(name: str, write: Write) -> None:
    tree, said = BAD_FILES[name]
    file = write("bad.json", tree)
    with pytest.raises(ValueError) as refused:
        resolve(config(deepspeed={"generator": file}), {}, WORLD)
    assert str(refused.value).startswith(file) and said in str(refused.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: not a readable DeepSpeed configuration"):
        resolve(config(deepspeed={"generator": str(tmp_path / "none.json")}), {}, WORLD)
    with pytest.raises(ValueError, match=r"none\.json: not a readable"):
        resolve(config(), DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "none.json")}, WORLD)


def test_precision_that_a_file_turns_off(write: Write) -> None:
    file = write("off.json", zero(2) | {"bf16": {"enabled": False}})
    with pytest.raises(ValueError, match=r"bf16\.enabled is False, train\.precision is bf16; make them equal"):
        resolve(config(train={"batch": 8, "precision": "bf16"}, deepspeed={"generator": file}), {}, WORLD)
    assert stages(resolve(config(deepspeed={"generator": file}), {}, WORLD)) == (2, 0)


BAD_LAUNCHES = {  # accelerate settings that conflict with the defaults of `config`, expected message
    "stage": ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "5"}, "zero_stage of accelerate's configuration: 5 is not a ZeRO stage"),
    "precision": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision: fp16 in accelerate's configuration, train.precision is fp32"),
    "fp8": ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision: fp8"),
    "grad_accumulation": (
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"},
        "gradient_accumulation_steps is 2, train.grad_accumulation is 1",
    ),
    "clipping": ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "gradient_clipping is 1.0, optim.grad_clip is 0"),
    "nvme": ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "accelerate's configuration: offload_optimizer to nvme"),
    "offload at 0": (
        {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"},
        "requires a ZeRO stage",
    ),
    "fsdp": ({"ACCELERATE_USE_FSDP": "true"}, "distributed_type: FSDP"),
    "megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "distributed_type: MEGATRON_LM"),
    "dynamo": ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend: INDUCTOR"),
}


@pytest.mark.parametrize("name", BAD_LAUNCHES)
def test_launches_that_are_refused(name: str) -> None:
    environ, said = BAD_LAUNCHES[name]
    with pytest.raises(ValueError) as refused:
        resolve(config(), DEEPSPEED | environ, WORLD)
    assert said in str(refused.value)


def test_two_places_that_differ(write: Write) -> None:
    three = DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    for tree, environ, said in (
        (zero(2), three, "zero_optimization.stage is 2 for the generator, accelerate's configuration has 3; make them equal"),
        (zero(2), DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": write("launcher.json", zero(1))}, "is 2 for the generator"),
        (
            zero(3, offload_param={"device": "none"}),
            three | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "zero_optimization.offload_param.device is none, accelerate's configuration has cpu",
        ),
    ):
        file = write("own.json", tree)
        with pytest.raises(ValueError) as refused:
            resolve(config(deepspeed={"generator": file}), environ, WORLD)
        assert str(refused.value).startswith(file) and said in str(refused.value)
    both = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": write("launcher.json", zero(1)), "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    with pytest.raises(ValueError, match=r"launcher\.json: zero_optimization\.stage is 1, .* zero_stage 2; make them equal"):
        resolve(config(), DEEPSPEED | both, WORLD)


def test_combinations_that_would_train_wrongly(write: Write) -> None:
    file = write("three.json", zero(3))
    with pytest.raises(
        ValueError, match=r"three\.json: zero_optimization\.stage is 3 for the discriminator, .* use deepspeed\.discriminator="
    ):
        resolve(config(deepspeed={"generator": file, "discriminator": file}), {}, WORLD)
    with pytest.raises(ValueError, match=r"train\.precision: fp64 .* use the preset accelerate/ddp"):
        resolve(config(train={"batch": 8, "precision": "fp64"}), DEEPSPEED, WORLD)
    with pytest.raises(ValueError, match=r"train\.compile: not supported with ZeRO \(generator: stage 2\)"):
        resolve(config(train={"batch": 8, "compile": True}), DEEPSPEED, WORLD)


def test_signs_of_single_processes() -> None:
    """The environment set by launchers (test_doctor.py runs the launches); MPI implementations set other variables."""
    single = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    assert "started one process per machine" in launcher.launch_problem(single)
    for size in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        assert launcher.launch_problem(single | {size: "2"}) == ""
    assert launcher.launch_problem({"MASTER_ADDR": "10.0.0.1"}) == "" == launcher.launch_problem({})
    assert "hostfile" in launcher.launch_problem({"ACCELERATE_USE_DEEPSPEED": "true", "CROSS_SIZE": "1"})
    assert launcher.launch_problem({"ACCELERATE_USE_DEEPSPEED": "true", "CROSS_SIZE": "2"}) == ""
