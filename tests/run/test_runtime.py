"""What `runtime.start` asks of the machine."""

from pathlib import Path

import jax
import pytest

from seresnext_jax.config import Config
from seresnext_jax.run import runtime
from tests.programs import done

FAULTS = """
import resource
from pathlib import Path
import jax, jax.numpy as jnp
from seresnext_jax.run import runtime
from seresnext_jax.config import Config
runtime._NVIDIA_DRIVER = Path("/no/driver")
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


@pytest.mark.parametrize(
    ("option", "variable", "used"),
    [
        (None, None, str(Path("~/.cache/seresnext_jax").expanduser())),
        (None, "/of/the/user", "/of/the/user"),
        ("/given", "/of/the/user", "/given"),
        ("~/given", None, str(Path("~/given").expanduser())),
        ("", "/of/the/user", None),
    ],
)
def test_where_compiled_programs_are_kept(
    option: str | None, variable: str | None, used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    if variable is None:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    else:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    jax.config.update("jax_compilation_cache_dir", variable)  # as JAX does at its import
    try:
        runtime.start(Config() if option is None else Config(compilation_cache=option))
        assert jax.config.jax_compilation_cache_dir == used
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


CACHED = """
import sys
import jax, jax.numpy as jnp
from seresnext_jax.cli import run
from seresnext_jax.run import runtime
def compile_something(argv):
    runtime.use_compilation_cache(argv[0])
    def doubled(x):
        return 2 * x
    print(jax.jit(doubled)(jnp.float32(3)))
run(compile_something)
"""


@pytest.mark.parametrize("damage", ["cut", "emptied", "other"])
def test_a_damaged_entry_of_the_compilation_cache_is_replaced(damage: str, tmp_path: Path) -> None:
    """One line, and the next start is quiet."""
    command = ["-c", CACHED, str(tmp_path)]
    assert done(command).stderr == ""
    (entry,) = tmp_path.glob("jit_doubled-*-cache")
    whole = entry.read_bytes()
    left = {"cut": whole[: len(whole) // 2], "emptied": b"", "other": b"something else"}[damage]
    entry.write_bytes(left)
    said = done(command)
    assert said.stdout == "6.0\n"
    assert said.stderr.splitlines() == [
        f"warning: the compilation cache {tmp_path} had a damaged entry: it is replaced"
    ]
    assert len(entry.read_bytes()) > len(left)
    assert done(command).stderr == ""


def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    faults = int(done(["-c", FAULTS], env={"JAX_PLATFORMS": "cpu"}).stdout.splitlines()[-1])
    assert faults < 5 * 16_384  # pages of an array; 20 times as many if each is cleared anew
