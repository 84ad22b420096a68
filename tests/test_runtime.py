"""What `runtime.start` asks of the machine."""

import sys
from pathlib import Path

import pytest

from tests.programs import done

FAULTS = """
import resource
import jax, jax.numpy as jnp
from seresnext_jax import runtime
from seresnext_jax.config import Config
runtime.start(Config(compilation_cache=""))
double = jax.jit(lambda x: 2 * x)
x = jnp.ones(2**24)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    double(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):
    faults()
print(sum(faults() for _ in range(20)))
"""
"""Makes and drops an array of 64 MiB, beyond the size that malloc maps anew every time. The first
ones are laid side by side, as an aligned array does not fit into the hole of the one before."""


@pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists(), reason="glibc without a GPU"
)
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    faults = int(done(["-c", FAULTS]).stdout.splitlines()[-1])
    assert faults < 5 * 16_384  # pages of an array; 20 times as many if each is cleared anew
