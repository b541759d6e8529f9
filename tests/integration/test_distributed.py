"""One process, DistributedDataParallel and ZeRO 1 to 3 give the same run, and resume from the checkpoints of each other.

All runs come from two launches per mode, with several runs each (many_runs.py); the tests compare their checkpoints.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import CONTROL, MODES, ROOT, begin, differing, largest_relative_difference, launcher, output, tensors, tensors_in, write_config
from time_limits import seconds

pytestmark = pytest.mark.timeout(seconds(1500))  # the first test waits for all runs; each launch has its own limit

# SGD where only rounding may differ: Adam would divide rounding errors by gradients near zero.
SGD = ("optim.name=sgd", "optim.generator_lr=1e-4", "optim.discriminator_lr=1e-4")
KINDS = {  # 5 to 10 steps each; gradient penalty and contrastive loss are on
    "adam": ("train.images=80", "run.save_every=40"),
    "accumulated": ("train.images=80", "train.grad_accumulation=2", "run.save_every=1000", *SGD),
    "bf16": ("train.images=40", "train.precision=bf16", "run.save_every=1000"),
    "fp16": ("train.images=40", "train.precision=fp16", "run.save_every=1000"),
    "recomputed": ("train.images=40", "train.activation_checkpointing=true", "run.save_every=1000"),
    "clipped": ("train.images=40", *SGD, "optim.grad_clip=0.01", "run.save_every=1000"),
    "controlled": ("train.images=40", "run.save_every=1000", *CONTROL),
    "sgd": ("train.images=64", *SGD, "loss.mmd=1", "run.save_every=40"),
}
FILES = "configs/deepspeed"
EXTRA = {  # additional kinds for single modes
    ("cpu", "unpenalised"): ("train.images=40", "loss.r1_gamma=0", "run.save_every=1000", *SGD),
    ("zero3", "unpenalised"): (
        "train.images=40",
        "loss.r1_gamma=0",
        f"deepspeed.discriminator={FILES}/zero3.json",
        "run.save_every=1000",
        *SGD,
    ),
    ("one", "sharded"): (*KINDS["adam"], f"deepspeed.generator={FILES}/zero3.json", f"deepspeed.discriminator={FILES}/zero2.json"),
}
SHARDED = ("zero1", "zero2", "zero3")
SPOILED = {
    "unfrozen discriminator": "zero1",
    "unsynchronised batch norm": "cpu",
    "ungathered contrastive loss": "cpu",
}
Start = Callable[[str, int, list[dict]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modes")


@pytest.fixture(scope="module")
def start(folder: Path, shards: Path) -> Start:
    """Launch a mode with a list of jobs: ``{"run": folder, "overrides": …}`` and other fields of `many_runs.Job`."""
    numbers = itertools.count()
    config = str(write_config(folder / "modes"))

    def start(mode: str, processes: int, jobs: list[dict]) -> None:
        name = folder / f"start-{next(numbers)}-{mode}-{processes}"
        common = [f"data.shards={shards}", f"train.world_size={processes}"]
        trees = [
            {key: value for key, value in job.items() if key != "run"}
            | {"config": config, "overrides": [*common, f"run.dir={job['run']}", *job["overrides"]]}
            for job in jobs
        ]
        file = name.with_suffix(".json")
        file.write_text(json.dumps(trees))
        process = begin([*launcher(mode, processes), str(ROOT / "tests" / "helpers" / "many_runs.py"), str(file)], name)
        assert process.wait(timeout=seconds(280)) == 0, output(name)

    return start


@pytest.fixture(scope="module")
def unbroken(folder: Path, start: Start) -> Path:
    """Uninterrupted runs: ``{mode}/{kind}``, with facts for the ``adam`` ones."""
    for mode in MODES:
        kinds = ("adam", "sgd") if mode == "one" else KINDS
        jobs = [
            {"run": str(folder / mode / kind), "overrides": KINDS[kind], "facts": str(folder / mode / f"{kind}.json")} for kind in kinds
        ]
        jobs += [{"run": str(folder / mode / kind), "overrides": overrides} for (of, kind), overrides in EXTRA.items() if of == mode]
        jobs += [
            {"run": str(folder / "spoiled" / spoil), "overrides": KINDS["sgd"], "spoil": spoil}
            for spoil, of in SPOILED.items()
            if of == mode
        ]
        start(mode, 1 if mode == "one" else 2, jobs)
    return folder


@pytest.fixture(scope="module")
def resumed(unbroken: Path, start: Start) -> Path:
    """``{saved by}-{resumed by}/{kind}`` for all pairs, each with ``again`` (saved right after loading), and a chain of world sizes."""

    def job(source: Path, images: int, target: Path, kind: str, *overrides: str) -> dict:
        checkpoint = source / "checkpoints" / f"images-{images:012d}"
        shutil.copytree(checkpoint, target / "checkpoints" / checkpoint.name)
        return {"run": str(target), "overrides": [*KINDS[kind], *overrides], "save_again": str(target / "again")}

    chain = unbroken / "chain"
    for after in MODES:
        kinds = [(before, "sgd" if "one" in (before, after) else "adam") for before in MODES]
        jobs = [job(unbroken / before / kind, 40, unbroken / f"{before}-{after}" / kind, kind) for before, kind in kinds]
        jobs += [
            job(unbroken / before / "adam", 40, unbroken / f"{before}-{after}" / "moments", "adam", "train.images=40")
            for before, kind in kinds
            if kind != "adam"
        ]
        if after == "one":
            jobs.append(job(unbroken / "zero2" / "sgd", 40, chain / "one", "sgd", "train.images=48"))
        if after == "zero3":
            jobs.append(job(chain / "one", 48, chain / "two", "sgd", "train.images=56"))
        start(after, 1 if after == "one" else 2, jobs)
    four = job(unbroken / "zero1" / "adam", 40, unbroken / "four", "adam", "train.images=48")
    start("zero3", 4, [job(chain / "two", 56, chain / "four", "sgd"), four | {"facts": str(unbroken / "four.json")}])
    return unbroken


@pytest.mark.parametrize("mode", SHARDED)
@pytest.mark.parametrize("kind", ["adam", "accumulated", "bf16", "fp16", "recomputed", "controlled", "sgd"])
def test_sharded_run_has_the_bits_of_data_parallel(unbroken: Path, mode: str, kind: str) -> None:
    """Compares weights, statistics, EMA and moments. Stages 2 and 3 sum the accumulation steps in another order."""
    plain, sharded = tensors(unbroken / "cpu" / kind), tensors(unbroken / mode / kind)
    if kind == "accumulated" and mode != "zero1":
        weights = [{name: tensor for name, tensor in run.items() if "optimizer" not in name} for run in (plain, sharded)]
        assert largest_relative_difference(*weights) < 1e-7
    else:
        assert differing(plain, sharded) == []


def test_discriminator_at_stage_3_without_penalty_is_data_parallel_to_rounding(unbroken: Path) -> None:
    """Compares to rounding: the gradients of real and generated tiles are summed in another order."""
    plain, sharded = tensors(unbroken / "cpu" / "unpenalised"), tensors(unbroken / "zero3" / "unpenalised")
    assert largest_relative_difference(plain, sharded) < 1e-7


def test_one_process_under_deepspeed_has_the_bits_of_one_without(unbroken: Path) -> None:
    assert differing(tensors(unbroken / "one" / "adam"), tensors(unbroken / "one" / "sharded")) == []


@pytest.mark.parametrize("mode", SHARDED)
def test_clipping_is_the_same_to_rounding(unbroken: Path, mode: str) -> None:
    """Compares to rounding: DeepSpeed divides by the norm, torch multiplies by its inverse."""
    plain, clipped = tensors(unbroken / "cpu" / "clipped"), tensors(unbroken / mode / "clipped")
    assert largest_relative_difference(plain, clipped) < 1e-7
    assert largest_relative_difference(plain, tensors(unbroken / "cpu" / "sgd", 40)) > 1e-6  # so clipping has an effect


@pytest.mark.parametrize("mode", ["cpu", *SHARDED])
def test_all_processes_have_the_same(unbroken: Path, mode: str) -> None:
    first, *others = json.loads((unbroken / mode / "adam.json").read_text())
    assert others and all(other["hashes"] == first["hashes"] for other in others)
    assert first["hashes"].keys() >= {"ema", "discriminator"}


@pytest.mark.parametrize("mode", ["cpu", *SHARDED])
def test_processes_are_the_same_run_as_one(unbroken: Path, mode: str) -> None:
    assert largest_relative_difference(tensors(unbroken / "one" / "sgd"), tensors(unbroken / mode / "sgd")) < 1e-6


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_broken_on_purpose_is_seen(unbroken: Path, spoil: str) -> None:
    """Checks that the comparisons above detect each injected difference."""
    spoiled = unbroken / "spoiled" / spoil
    assert largest_relative_difference(tensors(unbroken / "one" / "sgd"), tensors(spoiled)) > 1e-6


@pytest.mark.parametrize("after", MODES)
@pytest.mark.parametrize("before", MODES)
def test_any_mode_resumes_from_any_mode(resumed: Path, before: str, after: str) -> None:
    runs = resumed / f"{before}-{after}"
    if "one" not in (before, after):
        assert differing(tensors(runs / "adam"), tensors(resumed / "cpu" / "adam")) == []
        kind = "adam"
    else:
        assert largest_relative_difference(tensors(runs / "sgd"), tensors(resumed / "one" / "sgd")) < 1e-6
        kind = "moments"
    again = tensors_in(runs / kind / "again" / "images-000000000040")
    assert differing(again, tensors(resumed / before / "adam", 40)) == []
    assert any(name.endswith("exp_avg_sq") for name in again)


def test_world_size_changes_from_two_to_one_to_two_to_four(resumed: Path) -> None:
    assert largest_relative_difference(tensors(resumed / "chain" / "four"), tensors(resumed / "one" / "sgd")) < 1e-6
    assert differing(tensors_in(resumed / "four" / "again" / "images-000000000040"), tensors(resumed / "zero1" / "adam", 40)) == []


@pytest.mark.parametrize(("facts", "processes"), [("zero1/adam.json", 2), ("zero2/adam.json", 2), ("zero3/adam.json", 2), ("four.json", 4)])
def test_optimizer_and_master_weights_are_shared_out(resumed: Path, facts: str, processes: int) -> None:
    whole = json.loads((resumed / "cpu" / "adam.json").read_text())[0]["optimizer_bytes"]
    shares = json.loads((resumed / facts).read_text())
    assert len(shares) == processes
    for share in shares:
        for network, size in share["optimizer_bytes"].items():
            total = whole[network] * 3 / 2  # two moments, and master weights
            assert total / processes * 0.9 < size <= total / processes * 1.05
