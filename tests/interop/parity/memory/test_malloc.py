"""The memory of freed large arrays is returned to the system, or kept for later ones."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.interop.parity.memory import malloc
from jaxllm.interop.parity.memory.malloc import map_large_arrays, return_freed_memory

# Frees every other one of many arrays: by default their memory is kept, since it is fragmented.
PROGRAM = """
import sys
import numpy as np
from jaxllm.interop.parity.memory.malloc import map_large_arrays, return_freed_memory

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

# Allocates and frees a large array many times: the system clears its pages once, or every time.
KEEPING = """
import resource, sys
from contextlib import nullcontext
import numpy as np
from jaxllm.interop.parity.memory.malloc import keeping_freed_memory, map_large_arrays

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1])

if sys.argv[1] == "mapped":
    map_large_arrays()
before, held = faults(), resident()
with nullcontext() if sys.argv[1] == "not kept" else keeping_freed_memory():
    for _ in range(20):
        np.empty(2**26, np.int8)[::4096] = 1
    kept = resident() - held
print(faults() - before, kept, resident() - held)
"""
PAGES = 2**26 // resource.getpagesize()


@pytest.mark.parametrize(
    ("how", "is_kept"), [("kept", True), ("not kept", False), ("mapped", False)]
)
def test_kept_memory_is_not_cleared_for_every_array_and_returned_at_the_end(how, is_kept):
    small_pages = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    program = [sys.executable, "-c", KEEPING, how]
    done = subprocess.run(program, env=small_pages, capture_output=True, text=True, check=True)
    faults, kept, after = map(int, done.stdout.split())
    assert (faults < 2 * PAGES) == is_kept
    assert (kept > 0.9 * PAGES) == is_kept
    assert after < 0.1 * PAGES


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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


@pytest.mark.parametrize(("free", "is_returned"), [(0.5, True), (2, False), (None, True)])
def test_freed_memory_is_kept_while_as_much_is_left(free, is_returned, monkeypatch):
    resident = resident_bytes()
    total = None if free is None else 8 * resident
    left = None if free is None else int(free * resident)
    monkeypatch.setattr(malloc, "host_memory", lambda: (total, left))
    calls = []
    monkeypatch.setattr(malloc, "return_freed_memory", lambda: calls.append(1))
    malloc.return_scarce_memory()
    assert bool(calls) == is_returned


def test_a_limit_of_the_container_counts_what_this_process_holds(monkeypatch):
    resident = resident_bytes()
    monkeypatch.setattr(malloc, "host_memory", lambda: (resident, resident))
    calls = []
    monkeypatch.setattr(malloc, "return_freed_memory", lambda: calls.append(1))
    malloc.return_scarce_memory()
    assert calls
