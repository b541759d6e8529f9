"""Checks the processes of a cluster before training: started like the training, reports each problem with its fix.

Owns the order of the checks and their time-outs. Every wait is bounded, because the faults to detect are often hangs.
facts.py collects the data, diagnosis.py decides what counts as a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan import cli
from launch.checks.timeout import is_stuck, run_with_timeout

if TYPE_CHECKING:  # slow imports, deferred so that --help is fast
    from attributegan.distributed.rendezvous import Rendezvous
    from launch.checks.facts import Facts

RENDEZVOUS_S = 30.0  # for processes to reach the rendezvous and exchange their facts
PROCESS_GROUP_S = 30.0  # to initialize a process group
DISK_S = 10.0  # for a file to become visible on other machines; network file systems cache directory contents for seconds
EXAMPLES = """\
  accelerate launch --config_file "$(attributegan-presets --path accelerate/ddp)" -m attributegan doctor --processes 8
  accelerate launch --config_file "$(attributegan-presets --path accelerate/multinode_zero2)" --machine_rank 0 --main_process_ip 10.0.0.1 \\
      -m attributegan doctor --processes 16 --shared /shared/runs       (and on the second machine, --machine_rank 1)
  torchrun --nproc-per-node 2 -m attributegan doctor
One process alone checks its versions, GPUs and memory, but no network, clocks or shared disk: start it like the training.
Exits with 0 if all checks pass, 1 if there are problems (launchers turn any nonzero status into 1), 2 for invalid options."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.seconds <= 0 or arguments.processes < 0:
        print("error: --seconds must be above 0, --processes at least 0", file=sys.stderr)
        return 2
    problems: list[str] = []
    status = cli.exit_status(lambda: problems.extend(Doctor(arguments).run()))
    sys.stdout.flush()
    if is_stuck():
        sys.stderr.flush()
        os._exit(1)
    return status or (1 if problems else 0)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Check a cluster's processes, versions, GPUs, network, clocks and shared disk.", EXAMPLES)
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="expected number of processes on all machines")
    parser.add_argument("--shared", default="", metavar="DIR", help="folder that all machines should see, such as that of runs or shards")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration of the network measurement (default: 10)")
    return parser


class Doctor:
    """Runs all checks on this process, together with the other ranks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from launch.checks import facts

        self.arguments = arguments
        self.facts = facts.collect()
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.problems: list[str] = []

    def run(self) -> list[str]:
        """Collect, measure and report; returns the problems, the same on every rank."""
        from attributegan.distributed.rendezvous import Rendezvous, RendezvousError

        if self.world == 1:
            self._report([self.facts])
            return self.problems
        try:
            rendezvous = Rendezvous(self.facts.rank, self.world, RENDEZVOUS_S)
            gathered = rendezvous.all_gather("facts", dataclasses.asdict(self.facts), RENDEZVOUS_S)
            self._check_together(rendezvous, parse_facts(gathered))
        except (ValueError, RendezvousError) as error:
            self.problems.append(f"rank {self.facts.rank} ({self.facts.host}): {error}")
            self._print([])
        return self.problems

    def _check_together(self, rendezvous: Rendezvous, all_facts: list[Facts]) -> None:
        """Run the checks that need several ranks; every rank reports all problems."""
        from attributegan.distributed.rendezvous import RendezvousError
        from launch.checks import diagnosis, shared_disk

        lines: list[str] = []
        ranks = [fact.rank for fact in all_facts]
        unreachable = diagnosis.check_addresses(all_facts)
        if len(ranks) == self.world and not unreachable:
            lines = self._measure(rendezvous, all_facts)
        else:
            lines.append("network and clocks: not measured, because of the problems below")
        if self.arguments.shared:
            self.problems += shared_disk.check(rendezvous, Path(self.arguments.shared), all_facts, DISK_S)
        self._report(all_facts, lines, is_first=self.facts.rank == min(ranks))
        with contextlib.suppress(RendezvousError):  # the other ranks have exited
            # A launcher terminates all ranks when the first one exits: wait until the first rank has printed its report.
            rendezvous.all_gather("reported", True, RENDEZVOUS_S, ranks)

    def _measure(self, rendezvous: Rendezvous, all_facts: list[Facts]) -> list[str]:
        """Measure network and clocks; returns lines of the report."""
        from launch.checks import diagnosis, network

        limit = PROCESS_GROUP_S + 6 * self.arguments.seconds
        measured, problem = run_with_timeout(lambda: network.measure(rendezvous, all_facts, self.arguments.seconds, PROCESS_GROUP_S), limit)
        problem_of_rank = rendezvous.all_gather("network", problem, limit + RENDEZVOUS_S)
        failed = {rank: reason for rank in range(self.world) if (reason := problem_of_rank.get(rank, "the process exited"))}
        if failed or measured is None:
            ranks, reason = diagnosis.format_ranks(list(failed)), next(iter(failed.values()))
            self.problems.append(
                f"{ranks} failed in a collective: {reason}. Open all ports between the machines and select the right network "
                "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); NCCL_DEBUG=INFO logs details"
            )
            return ["network and clocks: measurement failed"]
        speeds, offsets_s = measured
        self.problems += diagnosis.check_speeds(speeds) + diagnosis.check_clocks(all_facts, offsets_s)
        largest = max(map(abs, offsets_s))
        lines = [
            f"all-reduce {s.group}: {s.latency_s * 1e6:,.0f} us for 4 bytes, {s.bytes_per_s / 1e6:,.0f} MB/s for large messages"
            for s in speeds
        ]
        return [*lines, f"clocks: {largest:.3f} s apart at most"]

    def _report(self, all_facts: list[Facts], lines: Sequence[str] = (), is_first: bool = True) -> None:
        from launch.checks import diagnosis

        self.problems += diagnosis.check_launch(all_facts, self.world, self.arguments.processes)
        self.problems += diagnosis.check_versions(all_facts) + diagnosis.check_gpus(all_facts)
        self.problems += diagnosis.check_addresses(all_facts) + diagnosis.check_memory(all_facts)
        if is_first:
            self._print([f"{self.world} process{'es' if self.world > 1 else ''}", *_describe(all_facts), *lines, self._scope()])

    def _scope(self) -> str:
        """Returns the line about the shared disk: whether it was checked."""
        if self.world == 1:
            return "network, clocks and shared disk: not checked, since there is only one process; start it like the training"
        return f"shared disk {self.arguments.shared}: checked" if self.arguments.shared else "shared disk: not checked (--shared DIR)"

    def _print(self, lines: Sequence[str]) -> None:
        """Print the report with a single write, so that output of other ranks does not interleave."""
        count = len(self.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}:" if count else "all checks passed"
        print("\n".join([*lines, verdict, *(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))]), flush=True)


def parse_facts(gathered: Mapping[int, Mapping[str, Any]]) -> list[Facts]:
    """Returns the facts of each rank.

    Raises:
        ValueError: a rank sent other fields, because it runs another version of attributegan.
    """
    from launch.checks.facts import Facts

    names = {field.name for field in dataclasses.fields(Facts)}
    for rank, fields in gathered.items():
        if fields.keys() != names:
            raise ValueError(f"rank {rank} ({fields.get('host')}) runs another version of attributegan; install the same on all machines")
    return [Facts(**fields) for fields in gathered.values()]


def _describe(all_facts: Sequence[Facts]) -> list[str]:
    from launch.checks import diagnosis

    first = all_facts[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    lines = [f"  {line}" for line in diagnosis.format_hosts(all_facts)]
    gpus = f"{sum(fact.gpus_visible > 0 for fact in all_facts)} processes see GPUs"
    address = f"{first.interface} {first.address}" if first.address else "an address chosen by NCCL"
    return [
        *lines,
        f"rank {first.rank} has {versions}",
        f"{gpus}; rank {first.rank} listens on {address} and reaches MASTER_ADDR through {first.route or 'no route'}",
        f"least free memory: {min(fact.memory_free for fact in all_facts) / 2**30:.1f} GiB; "
        f"least free space in /dev/shm: {min(fact.shm_free for fact in all_facts) / 2**30:.1f} GiB",
    ]


if __name__ == "__main__":
    sys.exit(main())
