"""Check the processes of a cluster before training on it: started as training is, says in words what is wrong and how to mend it.

Owns the order of the checks and their time-outs: nothing here waits without a limit, since what is looked for are things that hang.
What is looked at is in facts.py, what counts as wrong in diagnosis.py.
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
from launch.checks.timeout import bounded, is_stuck

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from attributegan.distributed.rendezvous import Rendezvous
    from launch.checks.facts import Facts

MEET_S = 30.0  # for processes to find the meeting point, and to say what they see
GROUP_S = 30.0  # for a process group to come about
DISK_S = 10.0  # for a file to be seen by the other machines; disks keep what they know of a folder for some seconds
EXAMPLES = """\
  accelerate launch --config_file configs/accelerate/ddp.yaml launch/doctor.py --processes 8
  accelerate launch --config_file configs/accelerate/multinode_zero2.yaml --machine_rank 0 --main_process_ip 10.0.0.1 \\
      launch/doctor.py --processes 16 --shared /shared/runs       (and on the second machine, --machine_rank 1)
  torchrun --nproc-per-node 2 launch/doctor.py
Status 0 when all is well, 1 when something is not (a launcher makes 1 of any other than 0), 2 for options that can't be read."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.seconds <= 0 or arguments.processes < 0:
        print("error: --seconds must be above 0, --processes at least 0", file=sys.stderr)
        return 2
    problems: list[str] = []
    status = cli.exit_status(lambda: problems.extend(Examination(arguments).run()))
    sys.stdout.flush()
    if is_stuck():
        sys.stderr.flush()
        os._exit(1)
    return status or (1 if problems else 0)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("Check a cluster's processes, versions, GPUs, network, clocks and shared disk.", EXAMPLES)
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="how many there should be, over all machines")
    parser.add_argument("--shared", default="", metavar="DIR", help="a folder that all machines should see, such as that of runs or shards")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for measuring the network (default: 10)")
    return parser


class Examination:
    """All checks, on this process together with the others."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from launch.checks import facts

        self.arguments = arguments
        self.facts = facts.look()
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.problems: list[str] = []

    def run(self) -> list[str]:
        """Look, measure, tell; the same problems on every process."""
        from attributegan.distributed.rendezvous import Rendezvous, RendezvousError

        if self.world == 1:
            self._tell([self.facts])
            return self.problems
        try:
            rendezvous = Rendezvous(self.facts.rank, self.world, MEET_S)
            everyone = rendezvous.all_gather("facts", dataclasses.asdict(self.facts), MEET_S)
            self._together(rendezvous, understood(everyone))
        except (ValueError, RendezvousError) as error:
            self.problems.append(f"rank {self.facts.rank} ({self.facts.host}): {error}")
            self._say([])
        return self.problems

    def _together(self, rendezvous: Rendezvous, everyone: list[Facts]) -> None:
        """The checks that need others; what one process finds, all of them report."""
        from attributegan.distributed.rendezvous import RendezvousError
        from launch.checks import diagnosis, shared_disk

        lines: list[str] = []
        here = [fact.rank for fact in everyone]
        unreachable = diagnosis.of_addresses(everyone)
        if len(here) == self.world and not unreachable:
            lines = self._measure(rendezvous, everyone)
        else:
            lines.append("network and clocks: not measured, for the reasons below")
        if self.arguments.shared:
            self.problems += shared_disk.try_out(rendezvous, Path(self.arguments.shared), everyone, DISK_S)
        self._tell(everyone, lines, is_first=self.facts.rank == min(here))
        with contextlib.suppress(RendezvousError):  # the others have gone
            rendezvous.all_gather("told", True, MEET_S, here)  # a launcher that sees one end ends the others: not before the first has told

    def _measure(self, rendezvous: Rendezvous, everyone: list[Facts]) -> list[str]:
        """Lines of the report."""
        from launch.checks import diagnosis, network

        limit = GROUP_S + 6 * self.arguments.seconds
        done, problem = bounded(lambda: network.measure(rendezvous, everyone, self.arguments.seconds, GROUP_S), limit)
        said = rendezvous.all_gather("network", problem, limit + MEET_S)
        failed = {rank: words for rank in range(self.world) if (words := said.get(rank, "it has ended"))}
        if failed or done is None:
            who, why = diagnosis.ranks_of(list(failed)), next(iter(failed.values()))
            self.problems.append(
                f"{who} could not compute with the others: {why}. Is every port between the machines open, and the "
                "right network chosen (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)? See NCCL_DEBUG=INFO"
            )
            return ["network and clocks: could not be measured"]
        speeds, offsets_s = done
        self.problems += diagnosis.of_speeds(speeds) + diagnosis.of_clocks(everyone, offsets_s)
        largest = max(map(abs, offsets_s))
        lines = [
            f"all-reduce {s.group}: {s.latency_s * 1e6:,.0f} us for 4 bytes, {s.bytes_per_s / 1e6:,.0f} MB/s for large messages"
            for s in speeds
        ]
        return [*lines, f"clocks: {largest:.3f} s apart at most"]

    def _tell(self, everyone: list[Facts], lines: Sequence[str] = (), is_first: bool = True) -> None:
        from launch.checks import diagnosis

        self.problems += diagnosis.of_launch(everyone, self.world, self.arguments.processes)
        self.problems += diagnosis.of_versions(everyone) + diagnosis.of_gpus(everyone)
        self.problems += diagnosis.of_addresses(everyone) + diagnosis.of_room(everyone)
        if is_first:
            disk = (
                f"shared disk {self.arguments.shared}: looked at" if self.arguments.shared else "shared disk: not looked at (--shared DIR)"
            )
            self._say([f"{self.world} processes", *_describe(everyone), *lines, disk])

    def _say(self, lines: Sequence[str]) -> None:
        """Print the report in one piece."""
        count = len(self.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}:" if count else "all is well"
        print("\n".join([*lines, verdict, *(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))]), flush=True)


def understood(everyone: Mapping[int, Mapping[str, Any]]) -> list[Facts]:
    """What the processes said, unless one's doctor is so much older or newer that it says other things (ValueError)."""
    from launch.checks.facts import Facts

    names = {field.name for field in dataclasses.fields(Facts)}
    for rank, said in everyone.items():
        if said.keys() != names:
            raise ValueError(f"rank {rank} ({said.get('host')}) runs another version of attributegan; install the same on all machines")
    return [Facts(**said) for said in everyone.values()]


def _describe(everyone: Sequence[Facts]) -> list[str]:
    from launch.checks import diagnosis

    first = everyone[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    lines = [f"  {line}" for line in diagnosis.hosts(everyone)]
    gpus = f"{sum(fact.gpus_seen > 0 for fact in everyone)} processes see GPUs"
    address = f"{first.interface} {first.address}" if first.address else "chosen by NCCL"
    return [
        *lines,
        f"rank {first.rank} has {versions}",
        f"{gpus}; rank {first.rank} listens on {address}, reaches the meeting point by {first.route or 'no route'}",
        f"least memory free: {min(fact.memory_free for fact in everyone) / 2**30:.1f} GiB; "
        f"least of /dev/shm: {min(fact.shm_free for fact in everyone) / 2**30:.1f} GiB",
    ]


if __name__ == "__main__":
    sys.exit(main())
