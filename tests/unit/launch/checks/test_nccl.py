"""`launch.checks.nccl`: which of NCCL's environment variables the doctor compares."""

from __future__ import annotations

import pytest

from launch.checks import facts, nccl


def test_variables_that_must_be_equal_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"NCCL_P2P_DISABLE": "1", "TORCH_NCCL_BLOCKING_WAIT": "0", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "mlx5"}
    assert nccl.settings(environ) == "NCCL_P2P_DISABLE=1 TORCH_NCCL_BLOCKING_WAIT=0"
    assert nccl.settings({"NCCL_SOCKET_IFNAME": "eth0"}) == nccl.settings({}) == "defaults"
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    assert "NCCL_ALGO=Ring" in facts.versions()["NCCL settings"]  # which `diagnosis.check_versions` compares
