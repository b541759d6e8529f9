"""DeepSpeed offloading of optimizers and weights to the CPU: bit-identical to runs without, and resumable either way."""

import json
from pathlib import Path

import pytest
from runs import ROOT, begin, differing, largest_relative_difference, launcher, output, tensors, write_config
from time_limits import seconds

ACCUMULATED = "train.grad_accumulation=2"  # offloading has separate code for it
SGD = ("optim.name=sgd",)
STAGES = {"one": 1, "two": 2, "three": 3}
HOW = {  # by run: the images at which its parts end, and whether they offload
    "plain": [(24, False)],
    "offloaded": [(24, True)],
    "changed": [(8, False), (16, True), (24, False)],
}


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two processes that trains ``{stage}-{how}``, and ``clipped-{how}`` and ``loose-plain`` at stage 1 with SGD."""
    folder = tmp_path_factory.mktemp("offload")
    config = str(write_config(folder / "all"))

    def file(stage: int, offload: bool) -> str:
        if (stage, offload) == (2, True):
            return str(ROOT / "configs" / "deepspeed" / "zero2_offload.json")
        device = {"device": "cpu"}
        parts = {"offload_optimizer": device} | ({"offload_param": device} if stage == 3 else {}) if offload else {}
        path = folder / f"{stage}-{offload}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage} | parts}))
        return str(path)

    def jobs(name: str, how: str, stage: int, *options: str) -> list[dict]:
        run = folder / f"{name}-{how}"
        common = [f"data.shards={shards}", f"run.dir={run}", "run.save_every=1000", *options]
        return [
            {
                "config": config,
                "facts": f"{run}-{images}.json",
                "overrides": [
                    *common,
                    f"train.images={images}",
                    f"deepspeed.generator={file(stage, offload)}",
                    f"deepspeed.discriminator={file(min(stage, 2), offload)}",
                ],
            }
            for images, offload in HOW[how]
        ]

    all_jobs = [job for name, stage in STAGES.items() for how in HOW for job in jobs(name, how, stage, ACCUMULATED)]
    all_jobs += [job for how in ("plain", "offloaded") for job in jobs("clipped", how, 1, ACCUMULATED, *SGD, "optim.grad_clip=0.5")]
    all_jobs += jobs("loose", "plain", 1, ACCUMULATED, *SGD)
    (folder / "jobs.json").write_text(json.dumps(all_jobs))
    process = begin([*launcher("cpu", 2), str(ROOT / "tests" / "helpers" / "many_runs.py"), str(folder / "jobs.json")], folder / "all")
    assert process.wait(timeout=seconds(240)) == 0, output(folder / "all")
    return folder


@pytest.mark.parametrize("how", ["offloaded", "changed"])
@pytest.mark.parametrize("stage", STAGES)
def test_offloaded_run_has_the_bits_of_one_that_is_not(runs: Path, stage: str, how: str) -> None:
    assert differing(tensors(runs / f"{stage}-plain"), tensors(runs / f"{stage}-{how}")) == []
    for images, offload in HOW[how]:
        for facts in json.loads((runs / f"{stage}-{how}-{images}.json").read_text()):
            assert facts["offloaded"] == {"generator": offload, "discriminator": offload}


def test_clipping_is_the_same_to_rounding(runs: Path) -> None:
    """Compares to rounding, with SGD: DeepSpeed sums the norm of offloaded gradients in another order, which Adam would amplify."""
    plain, offloaded = tensors(runs / "clipped-plain"), tensors(runs / "clipped-offloaded")
    assert largest_relative_difference(plain, offloaded) < 1e-6
    assert largest_relative_difference(plain, tensors(runs / "loose-plain")) > 1e-4  # so clipping had an effect
