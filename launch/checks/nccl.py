"""NCCL's environment variables: which are set, for the comparison between processes."""

from __future__ import annotations

from collections.abc import Mapping

PREFIXES = ("NCCL_", "TORCH_NCCL_")
OF_A_NODE = {"NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_HOSTID", "NCCL_TOPO_FILE", "NCCL_DEBUG_FILE"}  # names that may differ by machine


def settings(environ: Mapping[str, str]) -> str:
    """Returns the variables that must be equal on all ranks, as ``NAME=value``; "defaults" if none is set."""
    names = sorted(name for name in environ if name.startswith(PREFIXES) and name not in OF_A_NODE)
    return " ".join(f"{name}={environ[name]}" for name in names) or "defaults"
