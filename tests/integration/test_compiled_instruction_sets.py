"""Processes that use different instruction sets can share inductor's cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from instruction_sets import AVX2, needs_x86
from time_limits import seconds

from attributegan.utils.precision import cpu_capability

# Prints the output of a small compiled network: a matrix product, a reduction and functions of single elements.
SCRIPT = """
import torch
from attributegan.distributed.engine import compile_options

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(8, 32), torch.nn.LayerNorm(32)

    def forward(self, x):
        return torch.tanh(self.norm(self.linear(x)))

torch.manual_seed(0)
network, x = Network(), torch.randn(64, 8)
plain = network(x).detach()
network.compile(options=compile_options(torch.device("cpu")))
print((network(x) - plain).abs().max().item())
"""


@needs_x86
@pytest.mark.slow
@pytest.mark.skipif(not cpu_capability().startswith("AVX512"), reason="needs a CPU with AVX-512")
def test_code_for_avx512_is_not_taken_from_the_cache_by_a_process_limited_to_avx2(tmp_path: Path) -> None:
    """Without the option, the second process reads past the ends of arrays: it crashes or returns wrong values."""
    for limits in ({}, AVX2):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **limits}
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=seconds(120), check=False
        )
        assert found.returncode == 0, found.stderr
        assert float(found.stdout) < 1e-5, limits
