"""Estimates the memory of the training state per process, by network and ZeRO stage; excludes activations.

Counts fp32 weights, gradients, optimizer state and EMA; under ZeRO the optimizer state includes master weights. Excludes buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 4  # of a number in fp32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one network on one process."""

    model_state: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.model_state + self.gradients + self.optimizer + self.average


def estimate(parameters: int, stage: int, world: int, moments: int, averaged: bool) -> MemoryEstimate:
    """Estimates the bytes per process at a ZeRO stage (Rajbhandari et al., SC 2020, fig. 1).

    Args:
        parameters: number of parameters of the network.
        stage: ZeRO stage, 0 (replicated) to 3.
        world: number of processes.
        moments: numbers of optimizer state per parameter; 2 for Adam.
        averaged: whether the network has an EMA.
    """
    whole, share = BYTES * parameters, BYTES * -(-parameters // world)
    return MemoryEstimate(
        model_state=share if stage == 3 else whole,
        gradients=share if stage >= 2 else whole,
        optimizer=(moments + 1) * share if stage else moments * whole,
        average=0 if not averaged else share if stage else whole,
    )


def lines(parameters: dict[str, int], stages: dict[str, int], world: int, moments: int) -> list[str]:
    """Formats the log lines at the start of a run: the memory of each network, and what other ZeRO stages would take."""
    rows = []
    for network, count in parameters.items():
        estimates = [estimate(count, stage, world, moments, averaged=network == "generator") for stage in range(4)]
        current = estimates[stages[network]]
        others = ", ".join(f"stage {stage} {_mib(other.total)}" for stage, other in enumerate(estimates) if stage != stages[network])
        rows.append(
            f"memory of the {network} per process ({count / 1e6:.1f}M parameters, ZeRO stage {stages[network]}): {_mib(current.total)} "
            f"(weights {_mib(current.model_state)}, gradients {_mib(current.gradients)}, optimizer {_mib(current.optimizer)}, "
            f"EMA {_mib(current.average)})" + (f"; {others}" if world > 1 else "")
        )
    return rows


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
