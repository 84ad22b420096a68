"""Operations with one meaning and one formulation per platform.

A formulation is chosen by the platform that a function is lowered for
(`jax.lax.platform_dependent`), not by the process's default backend: a step can be compiled for a
GPU on a machine without one.
Nothing outside this folder knows which platform runs.
"""
