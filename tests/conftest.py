"""Eight CPU devices, exact float32, no network, and a compilation cache that outlives the run."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["NPROC"] = "64"  # threads, so that collectives in flight cannot starve each other
os.environ["OMP_NUM_THREADS"] = "1"  # of PyTorch: those that wait would spin beside XLA's
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import jax
import pytest
import torch_needed
from jax.experimental.compilation_cache import compilation_cache

# The checks that families share are asserted in modules that are no tests themselves.
pytest.register_assert_rewrite(
    "decoder_family", "encoder_decoder_family", "source_family", "components_family"
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without PyTorch, test files that need it are left out; None lets pytest decide."""
    file = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    if torch_needed.IS_INSTALLED or file.suffix != ".py" or not file.is_file():
        return None
    return torch_needed.needs_torch(file) or None


def pytest_report_header() -> str | None:
    """How many files are left out, so that nobody takes the rest for all."""
    if torch_needed.IS_INSTALLED:
        return None
    files = [*torch_needed.TESTS.rglob("test_*.py")]
    left_out = sum(map(torch_needed.needs_torch, files))
    return f"PyTorch is not installed: {left_out} of {len(files)} test files are left out"


@pytest.fixture(autouse=True)
def no_lasting_mesh():
    """A test that forgets a mesh must not change the next one."""
    yield
    assert jax.sharding.get_abstract_mesh().empty


@pytest.fixture(autouse=True, scope="module")
def no_lasting_programs():
    """Thousands of compiled programs slow the interpreter down and fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def really_compiling() -> Iterator[None]:
    """A program from the cache says nothing on stderr.

    And of jaxlib 0.10.2, one with an all_to_all of CPU devices may wait forever, or crash.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
