"""Environment variables that keep torch and oneDNN to AVX2 in a child process, as on CPUs without bf16."""

import platform

import pytest

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits instruction sets of x86")
