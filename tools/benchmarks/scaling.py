"""``attributegan-bench scaling``: estimates the time of a training step on many GPUs from a few numbers; measures nothing.

Assumptions: gradients are summed by a ring all-reduce within each node and between nodes (Patarasuk & Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", JPDC 2009), first over the links in the node, then over its network, which all of its GPUs share.
The all-reduce overlaps with the backward pass, two thirds of the computation; time beyond that is added. Batch norms of the generator wait
for one small message from every process: once forward in the discriminator phase, once forward and once backward in the generator phase.
All GPUs are equally fast, and disks and CPUs keep up.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tools.options import add_command, with_settings

GPUS_IN_A_NODE = 8
NODE_LINKS = 300e9  # bytes/s between two GPUs of a node: two thirds of NVLink's 450 GB/s
NETWORKS = {"100 Gb/s": 12.5e9, "200 Gb/s": 25e9, "400 Gb/s": 50e9}  # bytes/s per node
REACHED = 0.8  # fraction of the network's rate that an all-reduce reaches
LATENCY_S = {"node": 10e-6, "network": 25e-6}  # per message
COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Step:
    """A training step on one GPU.

    Args:
        compute_s: seconds of computation.
        gradient_bytes: size of the gradients of both networks, fp32.
        norms: number of batch norms in the generator.
        bits: bits per gradient value in the all-reduce; below 32 if compressed.
        every: steps between all-reduces; above 1 for local SGD.
    """

    compute_s: float
    gradient_bytes: float
    norms: int = 9
    bits: int = 32
    every: int = 1

    def seconds(self, gpus: int, network: float) -> tuple[float, float]:
        """Return the seconds of a step on ``gpus`` GPUs, and the part of them spent waiting for communication.

        Args:
            network: bytes/s per node.
        """
        in_node = min(gpus, GPUS_IN_A_NODE)
        nodes = math.ceil(gpus / GPUS_IN_A_NODE)
        sent = self.gradient_bytes * self.bits / 32
        reduce = 2 * (in_node - 1) / in_node * sent / NODE_LINKS + 2 * (in_node - 1) * LATENCY_S["node"]
        reduce += 2 * (nodes - 1) / nodes * sent / (network * REACHED) + 2 * (nodes - 1) * LATENCY_S["network"]
        hidden = 2 / 3 * self.compute_s
        hops = math.log2(in_node) * LATENCY_S["node"] + math.log2(nodes) * LATENCY_S["network"] if gpus > 1 else 0
        waiting = max(0.0, reduce - hidden) / self.every + 3 * self.norms * hops
        return self.compute_s + waiting, waiting


@dataclass(frozen=True)
class ScalingSettings:
    """Options of ``scaling``, as in its help.

    Raises:
        ValueError: a number that is not above 0.
    """

    gflop: float = 119.2
    tflops: float = 100.0
    batch: int = 32
    gradients: float = 161.6
    bits: int = 32
    every: int = 1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise ValueError(f"--{name}: {value} must be above 0")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the estimate to the benchmarks of ``attributegan-bench``."""
    scaling = add_command(
        commands,
        "scaling",
        "estimate the speed of training on 1 to 1,024 GPUs, without a measurement",
        ["attributegan-bench scaling", "attributegan-bench scaling --gflop 30 --tflops 60 --batch 64 --bits 16"],
        description="Estimate the speed of training on 1 to 1,024 GPUs from a few numbers.\n\n" + __doc__.partition("\n\n")[2],
    )
    scaling.add_argument(
        "--gflop",
        type=float,
        default=119.2,
        metavar="N",
        help="operations per image in GFLOP, as counted by `train` (default: %(default)s)",
    )
    scaling.add_argument(
        "--tflops", type=float, default=100.0, metavar="N", help="sustained rate of a GPU in TFLOP/s (default: %(default)s)"
    )
    scaling.add_argument("--batch", type=int, default=32, metavar="N", help="images per step and GPU (default: %(default)s)")
    scaling.add_argument(
        "--gradients",
        type=float,
        default=161.6,
        metavar="MB",
        help="gradients of both networks in MB, as reported by `processes` (default: %(default)s)",
    )
    scaling.add_argument(
        "--bits", type=int, default=32, metavar="N", help="bits per gradient value in the all-reduce (default: %(default)s)"
    )
    scaling.add_argument("--every", type=int, default=1, metavar="N", help="steps between all-reduces (default: %(default)s)")
    scaling.set_defaults(estimate=with_settings(_estimate, ScalingSettings))


def _estimate(settings: ScalingSettings) -> Iterator[str]:
    compute_s = settings.batch * settings.gflop / settings.tflops / 1e3
    return table(Step(compute_s, settings.gradients * 1e6, bits=settings.bits, every=settings.every), settings.batch)


def table(step: Step, batch: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: images/s and parallel efficiency by number of GPUs and network."""
    yield f"Step of one GPU: {step.compute_s * 1e3:.0f} ms for {batch} images\n"
    yield "| GPUs | " + " | ".join(NETWORKS) + " |"
    yield "|---|" + "---|" * len(NETWORKS)
    for gpus in COUNTS:
        cells = []
        for network in NETWORKS.values():
            seconds, _ = step.seconds(gpus, network)
            cells.append(f"{gpus * batch / seconds:,.0f} images/s, {step.compute_s / seconds:.0%}")
        yield f"| {gpus:,} | " + " | ".join(cells) + " |"
