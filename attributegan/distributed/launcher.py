"""Detects from the environment that a launcher started fewer processes than requested.

Some commands then start single processes, each of which would train alone and succeed. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # set by torchrun and MPI implementations


def launch_problem(environ: Mapping[str, str]) -> str:
    """Returns why requested processes are missing, with the fix; "" if nothing indicates it."""
    # accelerate's launcher of a single process sets MASTER_ADDR only if several processes were requested.
    if "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ and not any(name in environ for name in WORLD):
        return (
            "accelerate launch was asked for several processes but started one process per machine, as it does for --cpu and for "
            "distributed_type MULTI_CPU or NO; use a configuration such as the preset accelerate/cpu, which has distributed_type MULTI_GPU "
            "with use_cpu"
        )
    # For several machines accelerate runs DeepSpeed's launcher, which sets CROSS_SIZE; without a hostfile it starts only one.
    if environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and environ.get("CROSS_SIZE") == "1":
        return (
            "accelerate launch was asked for several machines, but DeepSpeed's launcher (pdsh) started the processes of one, "
            "since it has no hostfile; use deepspeed_multinode_launcher: standard, as in the preset accelerate/multinode_zero2, on every "
            "machine"
        )
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not any(name in environ for name in WORLD):
        return (
            f"srun started {environ['SLURM_STEP_NUM_TASKS']} processes without a rendezvous (no WORLD_SIZE); use attributegan-submit, or "
            "accelerate launch in each task as in slurm/plain.sbatch (attributegan-presets --copy DIR)"
        )
    return ""
