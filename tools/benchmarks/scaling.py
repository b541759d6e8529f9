"""A model of the time of a training step on many GPUs: an estimate from a few numbers, and no measurement.

Assumptions: gradients are summed by a ring all-reduce in each node and between nodes (Patarasuk & Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", JPDC 2009), first over the links in a node, then over its network, which all of its GPUs share; it
runs beside the backward pass, which is two thirds of a phase, and what does not fit in is added; batch norms of the generator wait for one
small message of every process, once forward in the discriminator's phase and once forward and once backward in the generator's; all GPUs
are equally fast, and disks and processors keep up.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

GPUS_IN_A_NODE = 8
NODE_LINKS = 300e9  # bytes/s that a GPU sends to another of its node: NVLink of about 450 GB/s, two thirds of it
NETWORKS = {"100 Gb/s": 12.5e9, "200 Gb/s": 25e9, "400 Gb/s": 50e9}  # bytes/s of a node
REACHED = 0.8  # share of a network's rate that an all-reduce reaches
LATENCY_S = {"node": 10e-6, "network": 25e-6}  # of one message
COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Step:
    """One step of one GPU.

    Args:
        compute_s: seconds without any message.
        gradient_bytes: of both networks.
        norms: batch norms of the generator.
        bits: of a gradient number when it travels, 32 unless compressed.
        every: steps from one exchange to the next; above 1 they are local steps.
    """

    compute_s: float
    gradient_bytes: float
    norms: int = 9
    bits: int = 32
    every: int = 1

    def seconds(self, gpus: int, network: float) -> tuple[float, float]:
        """Seconds of a step on ``gpus``, and how many of them are waiting for messages."""
        in_node = min(gpus, GPUS_IN_A_NODE)
        nodes = math.ceil(gpus / GPUS_IN_A_NODE)
        sent = self.gradient_bytes * self.bits / 32
        reduce = 2 * (in_node - 1) / in_node * sent / NODE_LINKS + 2 * (in_node - 1) * LATENCY_S["node"]
        reduce += 2 * (nodes - 1) / nodes * sent / (network * REACHED) + 2 * (nodes - 1) * LATENCY_S["network"]
        hidden = 2 / 3 * self.compute_s
        hops = math.log2(in_node) * LATENCY_S["node"] + math.log2(nodes) * LATENCY_S["network"] if gpus > 1 else 0
        waiting = max(0.0, reduce - hidden) / self.every + 3 * self.norms * hops
        return self.compute_s + waiting, waiting


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the estimate to the benchmarks of ``attributegan-bench``."""
    scaling = commands.add_parser("scaling", help="no measurement: an estimate of the step on 1 to 1,024 GPUs", description=__doc__)
    scaling.add_argument(
        "--gflop", type=float, default=119.2, metavar="N", help="operations of an image: `train` counts them (%(default)s)"
    )
    scaling.add_argument("--tflops", type=float, default=100.0, metavar="N", help="what a GPU reaches of them in a second (%(default)s)")
    scaling.add_argument("--batch", type=int, default=32, metavar="N", help="images of a GPU and step (%(default)s)")
    scaling.add_argument("--gradients", type=float, default=161.6, metavar="MB", help="of both networks: `processes` tells (%(default)s)")
    scaling.add_argument(
        "--bits", type=int, default=32, metavar="N", help="of a gradient number on its way, below 32 if compressed (%(default)s)"
    )
    scaling.add_argument("--every", type=int, default=1, metavar="N", help="steps from one exchange of gradients to the next (%(default)s)")
    scaling.set_defaults(estimate=_estimate)


def _estimate(options: argparse.Namespace) -> Iterator[str]:
    for name in ("gflop", "tflops", "batch", "gradients", "bits", "every"):
        if getattr(options, name) <= 0:
            raise ValueError(f"--{name}: {getattr(options, name)} must be above 0")
    step = Step(options.batch * options.gflop / options.tflops / 1e3, options.gradients * 1e6, bits=options.bits, every=options.every)
    return table(step, options.batch)


def table(step: Step, batch: int) -> Iterator[str]:
    """Lines of Markdown: images/s and the share of N times one GPU, for each number of GPUs and network."""
    yield f"Step of one GPU: {step.compute_s * 1e3:.0f} ms for {batch} images\n"
    yield "| GPUs | " + " | ".join(NETWORKS) + " |"
    yield "|---|" + "---|" * len(NETWORKS)
    for gpus in COUNTS:
        cells = []
        for network in NETWORKS.values():
            seconds, _ = step.seconds(gpus, network)
            cells.append(f"{gpus * batch / seconds:,.0f} images/s, {step.compute_s / seconds:.0%}")
        yield f"| {gpus:,} | " + " | ".join(cells) + " |"
