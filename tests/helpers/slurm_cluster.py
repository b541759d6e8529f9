"""Runs a real Slurm of two nodes on this machine, each with its own network namespace, host name and daemon; removes all of it afterwards.

Requires root, network namespaces and the Slurm packages, but no systemd. As a script (``python tests/helpers/slurm_cluster.py``) it keeps a
cluster running until Ctrl-C and prints the command to enter it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from time_limits import seconds

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged", "ip", "nsenter", "unshare")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
NODES = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
CONTROLLER = "10.77.0.1"
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIGURATION = f"""
ClusterName=tests
SlurmctldHost=ctl({CONTROLLER})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={{root}}/munge.socket,cred_expire=5
StateSaveLocation={{root}}/state
SlurmdSpoolDir={{root}}/spool-%n
SlurmctldPidFile={{root}}/ctl.pid
SlurmdPidFile={{root}}/%n.pid
SlurmctldLogFile={{root}}/ctl.log
SlurmdLogFile={{root}}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
MinJobAge=86400
SlurmdTimeout=10
{{nodes}}
PartitionName=main Nodes=ALL Default=YES LLN=YES DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=100 GraceTime=60
PartitionName=urgent Nodes=ALL DefaultTime=1 MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=10
"""


def missing() -> str:
    """Returns why no cluster can run here, or ""."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=SBIN) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install -y --no-install-recommends {PACKAGES}"
    if os.geteuid() or subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True).returncode:
        return "not permitted to create network namespaces (needs root with CAP_SYS_ADMIN)"
    return ""


class Cluster:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = {host: f"slurm-{secrets.token_hex(3)}-{host}" for host in ("ctl", *NODES)}  # of the network namespaces
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))
        } | {"SLURM_CONF": str(root / "slurm.conf"), "PATH": SBIN}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def command(self, *command: str) -> list[str]:
        """Returns the command line that runs ``command`` on the login node."""
        return ["nsenter", f"--net=/run/netns/{self.names['ctl']}", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run ``command`` on the login node; returns its output."""
        done = subprocess.run(self.command(*command), env=self.environment, text=True, capture_output=True, timeout=seconds(120))
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def job(self, job: str) -> dict[str, str]:
        """Returns the fields of ``scontrol show job``, such as JobState, Restarts, NodeList."""
        return dict(field.split("=", 1) for field in self.run("scontrol", "show", "job", "-o", job).split() if "=" in field)

    def processes(self, *hosts: str) -> list[int]:
        """Returns the PIDs on the nodes, of jobs and daemons."""
        return [int(pid) for host in hosts for pid in _out("ip", "netns", "pids", self.names[host]).split()]

    def job_processes(self, *hosts: str) -> list[str]:
        """Returns the command lines of job processes on ``hosts`` (default: all nodes)."""
        lines = []
        for pid in self.processes(*(hosts or NODES)):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line and not line.startswith(("slurmd ", "slurmstepd:")):
                    lines.append(f"{pid} {line}")
        return lines

    def fail(self, host: str) -> None:
        """Simulate a power failure of the node."""
        for pid in self.processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def heal(self, host: str) -> None:
        self._on(host, "slurmd", "-D", "-N", host)

    def start(self) -> None:
        (self.root / "state").mkdir()
        nodes = "\n".join(f"NodeName={host} NodeAddr={address} CPUs=4 RealMemory=8000" for host, address in NODES.items())
        (self.root / "slurm.conf").write_text(CONFIGURATION.format(root=self.root, nodes=nodes))
        hosts = {"localhost": "127.0.0.1", "ctl": CONTROLLER, **NODES}
        (self.root / "hosts").write_text("".join(f"{address} {host}\n" for host, address in hosts.items()))
        (self.root / "munge.key").touch(0o600)
        (self.root / "munge.key").write_bytes(secrets.token_bytes(1024))
        self._make_networks()
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "seed-file": "munge.seed",
            "log-file": "munge.log",
        }
        munge = [f"--{option}={self.root / name}" for option, name in files.items()]
        self._spawn("munged", ["munged", "--foreground", "--force", "--origin=127.0.0.1", *munge])
        self._on("ctl", "slurmctld", "-D", "-c")
        for host in NODES:
            self.heal(host)
        self.wait_until(
            lambda: self.run("sinfo", "-hNo", "%n %T", "-p", "main", check=False).count(" idle") == len(NODES), 30, "two idle nodes"
        )

    def wait_until(self, condition: object, limit: float, what: str) -> None:
        deadline = time.monotonic() + seconds(limit)
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"no {what} in {seconds(limit):.0f} s; {self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """Returns the last log lines of each daemon."""
        return "".join(
            f"\n{path.name}:\n" + "".join(path.read_text(errors="replace").splitlines(True)[-8:]) for path in self.root.glob("*.log")
        )

    def stop(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            self.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        self.fail("ctl")
        for host in NODES:
            self.fail(host)
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], env={"PATH": SBIN}, capture_output=True)

    def _make_networks(self) -> None:
        """Create a bridge in the namespace of the controller with a cable to each node, invisible outside."""
        for name in self.names.values():
            _out("ip", "netns", "add", name)
            _out("ip", "-n", name, "link", "set", "lo", "up")
        ctl = ("ip", "-n", self.names["ctl"])
        _out(*ctl, "link", "add", "bridge", "type", "bridge")
        _out(*ctl, "address", "add", f"{CONTROLLER}/24", "dev", "bridge")
        _out(*ctl, "link", "set", "bridge", "up")
        for host, address in NODES.items():
            node = ("ip", "-n", self.names[host])
            _out(*ctl, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", self.names[host])
            _out(*ctl, "link", "set", host, "master", "bridge", "up")
            _out(*node, "address", "add", f"{address}/24", "dev", "eth0")
            _out(*node, "link", "set", "eth0", "up")

    def _on(self, host: str, *command: str) -> None:
        """Start a daemon on ``host``, with its host name and the hosts file of the cluster."""
        inside = 'mount --bind "$0" /etc/hosts; hostname "$1"; shift; exec "$@"'
        name = f"/run/netns/{self.names[host]}"
        self._spawn(
            host, ["nsenter", f"--net={name}", "unshare", "--mount", "--uts", "sh", "-c", inside, str(self.root / "hosts"), host, *command]
        )

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.err.log").open("ab") as output:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.daemons.append(daemon)


def for_tests() -> Iterator[Cluster]:
    """The body of a fixture: a running cluster, or a reason to skip."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the Slurm tests must run in CI: {reason}")
        pytest.skip(reason)
    with running() as cluster:
        yield cluster


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o755)
        cluster = Cluster(Path(root))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _out(*command: str) -> str:
    return subprocess.run(command, env={"PATH": SBIN}, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    if reason := missing():
        raise SystemExit(reason)
    with running() as cluster, contextlib.suppress(KeyboardInterrupt):
        print(f"SLURM_CONF={cluster.environment['SLURM_CONF']} {' '.join(cluster.command('bash'))}", flush=True)
        signal.pause()
