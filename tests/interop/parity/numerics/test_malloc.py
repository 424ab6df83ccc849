"""The memory of freed large arrays is returned to the system."""

import resource
import subprocess
import sys

import pytest

from jaxllm.interop.parity.numerics.malloc import map_large_arrays, return_freed_memory

# Frees every other one of many arrays: by default their memory is kept, since it is fragmented.
PROGRAM = """
import sys
import numpy as np
from jaxllm.interop.parity.numerics.malloc import map_large_arrays, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1])

if sys.argv[1] == "mapped":
    np.ones(2**22), map_large_arrays()
arrays = [np.ones(2**14 - 64) for _ in range(512)]
full = resident()
del arrays[::2]
if sys.argv[1] == "returned":
    return_freed_memory()
print(full - resident())
"""


def freed_bytes(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * resource.getpagesize()


def test_glibc_supports_both():
    assert map_large_arrays()
    assert return_freed_memory()


@pytest.mark.exhaustive
def test_memory_between_live_arrays_is_returned():
    half = 256 * 8 * 2**14
    assert freed_bytes("kept") < half / 4
    assert freed_bytes("mapped") > 0.9 * half
    assert freed_bytes("returned") > 0.9 * half
