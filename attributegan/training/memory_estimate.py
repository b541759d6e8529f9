"""What training takes of each process's memory, by network and by stage of ZeRO, beside feature maps.

Bytes of fp32 weights, gradients, optimizer and average; under ZeRO the optimizer has master weights as well. Buckets are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

WORD = 4  # bytes of a number in fp32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one network on one process."""

    model_state: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        return self.model_state + self.gradients + self.optimizer + self.average


def estimate(parameters: int, stage: int, world: int, moments: int, averaged: bool) -> MemoryEstimate:
    """Bytes per process at a stage of ZeRO (Rajbhandari et al., SC 2020, fig. 1).

    Args:
        parameters: numbers in the network.
        stage: 0 (every process has all) to 3.
        world: processes.
        moments: numbers that the optimizer keeps for each parameter; 2 for Adam.
        averaged: whether an average of it is kept.
    """
    whole, share = WORD * parameters, WORD * -(-parameters // world)
    return MemoryEstimate(
        model_state=share if stage == 3 else whole,
        gradients=share if stage >= 2 else whole,
        optimizer=(moments + 1) * share if stage else moments * whole,
        average=0 if not averaged else share if stage else whole,
    )


def lines(parameters: dict[str, int], stages: dict[str, int], world: int, moments: int) -> list[str]:
    """The report at the start of a run: what each network takes, and what other stages would."""
    rows = []
    for network, count in parameters.items():
        needs = [estimate(count, stage, world, moments, averaged=network == "generator") for stage in range(4)]
        this = needs[stages[network]]
        others = ", ".join(f"stage {stage} {_mib(other.total)}" for stage, other in enumerate(needs) if stage != stages[network])
        rows.append(
            f"memory of the {network} per process ({count / 1e6:.1f}M parameters, ZeRO stage {stages[network]}): {_mib(this.total)} "
            f"(weights {_mib(this.model_state)}, gradients {_mib(this.gradients)}, optimizer {_mib(this.optimizer)}, "
            f"average {_mib(this.average)})" + (f"; {others}" if world > 1 else "")
        )
    return rows


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
