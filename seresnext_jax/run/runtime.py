"""Settings that must be made before JAX uses its devices."""

import ctypes
import json
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from seresnext_jax.config import EvaluationConfig, flatten, option_name
from seresnext_jax.errors import CommonError, shown
from seresnext_jax.processes.agree import processes_by
from seresnext_jax.processes.join import initialize_distributed

# The names are from glibc's malloc.h. Only the main arena can grow without mmap: hence one arena.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_OWN_OPTIONS = (
    *("data.root", "data.index", "data.workers", "data.prefetch", "compilation_cache", "debug"),
    *("distributed.coordinator", "distributed.num_processes", "distributed.process_id"),
)
"""Options that each process may have for itself; none of them changes what is computed."""
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_UNREADABLE_ENTRY = r"Error reading persistent compilation cache entry for '([\w.<>]+)'"
"""Matches the start of JAX's warning; the group is the name of the compiled function."""


def start(config: EvaluationConfig) -> None:
    """Prepare this process: set XLA's flags and the compilation cache, and join the others.

    Must run before any array is created. Environment variables that the user has set are kept.

    Raises:
      UserError: as `initialize_distributed`.
    """
    keep_freed_memory()
    if config.data.backend == "dali-gpu":
        # DALI's own CUDA stream invalidates XLA's captured command buffers, and DALI has its own
        # memory pool.
        _add_xla_flag("--xla_gpu_enable_command_buffer=")
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".75")
    use_compilation_cache(config.compilation_cache)
    distributed = config.distributed
    initialize_distributed(
        coordinator=distributed.coordinator,
        num_processes=distributed.num_processes,
        process_id=distributed.process_id,
    )


def check_same_options(config: EvaluationConfig) -> None:
    """Check that all processes have the same options; all of them must call this.

    With another seed, for example, a process would start with weights of its own.

    Raises:
      CommonError: they have not.
    """
    mine = {n: value for n, value in flatten(config).items() if n not in _OWN_OPTIONS}
    groups = processes_by(json.dumps(mine))
    if len(groups) > 1:
        (options, first), (others, second) = list(groups.items())[:2]
        these, those = json.loads(options), json.loads(others)
        name = next(n for n in these | those if these.get(n) != those.get(n))
        raise CommonError(
            f"{first} and {second} have different options ({option_name(name)}: "
            f"{shown(these.get(name))} and {shown(those.get(name))}): start all processes with the "
            "same ones"
        )


def use_compilation_cache(folder: str) -> None:
    """Keep what JAX compiles in `folder`, for the next process; "": keep nothing.

    The user's JAX_COMPILATION_CACHE_DIR overrides the default folder. Damaged entries are replaced.
    """
    if (
        folder != EvaluationConfig.compilation_cache
        or "JAX_COMPILATION_CACHE_DIR" not in os.environ
    ):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)
    replace_damaged_entries()


def replace_damaged_entries() -> None:
    """Delete an entry of the compilation cache when JAX can't read it.

    JAX warns, compiles again, and keeps the damaged file because a file of that name exists; so it
    would warn at every start. This handler of the warning deletes the file before JAX writes the
    new one. The warning names only the function, so all entries of the function are deleted.
    """
    show = warnings.showwarning

    def delete_and_show(message: Any, *where: Any, **more: Any) -> None:
        found = re.match(_UNREADABLE_ENTRY, str(message))
        folder = jax.config.values["jax_compilation_cache_dir"]
        if found and folder:
            with suppress(OSError):
                for entry in Path(folder).glob(f"{found[1]}-*-cache"):
                    entry.unlink()
                message = f"the compilation cache {folder} had a damaged entry: it is replaced"
        show(message, *where, **more)

    warnings.showwarning = delete_and_show


def keep_freed_memory() -> None:
    """Let glibc keep the memory that XLA's CPU backend frees, for the next step.

    Each step allocates gigabytes of temporary buffers. By default glibc returns them to the system
    every time, and the kernel has to clear each page again (docs/performance-cpu.md). A thread
    keeps its arena, so this must run before XLA starts its threads. Nothing changes with other C
    libraries, or with an NVIDIA GPU, where XLA manages the memory itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not _NVIDIA_DRIVER.exists():
        for option, value in (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1):
            mallopt(option, value)


def _add_xla_flag(flag: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
