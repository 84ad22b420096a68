"""What has to be set before JAX meets its devices, and what is asked of the machine."""

import ctypes
import os
from pathlib import Path

import jax

from seresnext_jax.config import EvaluationConfig
from seresnext_jax.processes import initialize_distributed

# The names of glibc's malloc.h. Only the main arena can grow without mmap: hence one arena.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NVIDIA_DRIVER = Path("/dev/nvidiactl")


def start(config: EvaluationConfig) -> None:
    """Prepare this process: XLA's flags, the compilation cache, the other processes.

    Must run before any array is made. Variables that the user has set are left alone.
    """
    keep_freed_memory()
    if config.data.backend == "dali-gpu":
        # DALI's own CUDA stream invalidates XLA's captured command buffers, and its memory pool
        # lies beside XLA's.
        _add_xla_flag("--xla_gpu_enable_command_buffer=")
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".75")
    use_compilation_cache(config.compilation_cache)
    distributed = config.distributed
    initialize_distributed(
        coordinator=distributed.coordinator,
        num_processes=distributed.num_processes,
        process_id=distributed.process_id,
    )


def use_compilation_cache(folder: str) -> None:
    """Keep what JAX compiles in a folder, for the next process; in none if it is empty.

    The user's JAX_COMPILATION_CACHE_DIR overrides the default folder.
    """
    if folder == EvaluationConfig.compilation_cache and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)


def keep_freed_memory() -> None:
    """Let glibc keep what XLA's CPU backend frees, for the next step to take.

    Each step allocates its temporary buffers anew, gigabytes at once. Left to itself, glibc takes
    them from the system and gives them back every time, and the kernel has to clear each page
    (docs/performance.md). A thread keeps the arena that it has, so this comes before XLA's threads.
    Another C library is left as it is, and so is a machine with an NVIDIA GPU, where the memory of
    the computation is XLA's own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not _NVIDIA_DRIVER.exists():
        for option, value in (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1):
            mallopt(option, value)


def _add_xla_flag(flag: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
