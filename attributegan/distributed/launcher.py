"""What launchers leave in the environment of a process: signs that they started fewer processes than they were asked for.

Some commands start single processes, each of which would train alone and end well. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping

WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of kinds of MPI


def launch_problem(environ: Mapping[str, str]) -> str:
    """Why this process has not all the others that were asked for, with the fix; "" when nothing says so."""
    # accelerate's launcher for a single process names a meeting point only if it was asked for more than one process
    if "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ and not any(name in environ for name in WORLD):
        return (
            "accelerate launch was asked for several processes and started single ones, as it does for --cpu and for distributed_type "
            "MULTI_CPU or NO; use a file such as configs/accelerate/cpu.yaml, which has distributed_type MULTI_GPU with use_cpu"
        )
    # it starts DeepSpeed's own launcher, which sets this, for several machines only; without a hostfile that starts one
    if environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and environ.get("CROSS_SIZE") == "1":
        return (
            "accelerate launch was asked for several machines and DeepSpeed's launcher (pdsh) started the processes of one, having no "
            "hostfile; use deepspeed_multinode_launcher: standard, as in configs/accelerate/multinode_zero2.yaml, on every machine"
        )
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not any(name in environ for name in WORLD):
        return (
            f"srun started {environ['SLURM_STEP_NUM_TASKS']} processes that know nothing of each other; use attributegan-submit, or "
            "accelerate launch in each task as in configs/slurm/plain.sbatch"
        )
    return ""
