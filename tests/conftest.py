"""Eight simulated CPU devices for every test, and a compilation cache for the session.

Many tests compile the same program; with the cache it is compiled once.
"""

import tempfile

import jax

CACHE = tempfile.TemporaryDirectory(prefix="seresnext-jax-cache-", ignore_cleanup_errors=True)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
