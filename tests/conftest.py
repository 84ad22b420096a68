"""Eight simulated CPU devices for every test, and a warm compilation cache for the whole suite."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
