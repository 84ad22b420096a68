"""Eight simulated CPU devices for every test, and a compilation cache for the session.

Many tests compile the same program; with the cache it is compiled once, and without optimisation,
which takes half as long. The files that take longest come first, so that two workers (`make test`)
end together. Hypothesis draws the same examples every time, and has no deadline for an example: a
busy machine may stop the tests for a while.
"""

import os
import signal
import tempfile

import jax
import pytest
from hypothesis import settings

LONGEST = (
    "distributed",
    "reliability",
    "train",
    "readme",
    "wheel",
    "parity",
    "step",
    "convert",
    "eval",
)

CACHE = tempfile.TemporaryDirectory(prefix="seresnext-jax-cache-", ignore_cleanup_errors=True)

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)  # they change what a program prints

# A shell starts background jobs with Ctrl-C ignored, and their programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by file, the longest files first."""
    names = [f"test_{name}" for name in LONGEST]

    def rank(item: pytest.Item) -> int:
        return names.index(item.path.stem) if item.path.stem in names else len(names)

    items.sort(key=rank)
