"""The GPUs that programs are compiled for, as XLA's compiler describes a device."""

from dataclasses import dataclass
from typing import Literal

GpuName = Literal["h100", "a100", "t4", "v100"]

REACHABLE = 0.9
"""The share of a data sheet's memory bandwidth that a copy reaches."""


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of a device."""

    name: str
    """JAX's `device_kind`."""
    capability: tuple[int, int]
    """CUDA compute capability, major and minor."""
    cores: int
    """Streaming multiprocessors."""
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    """Bytes."""
    shared_memory_per_block: int
    """Bytes that a block gets when it asks for the maximum."""
    l2_cache: int
    """Bytes."""
    memory: int
    """Bytes."""
    bandwidth: int
    """Of the memory, in bytes per second."""
    clock_ghz: float
    accelerated: bool = False
    """Whether the architecture-specific instructions (sm_90a) are used."""


# By NVIDIA's data sheets, in the units of CUDA's device properties.
GPUS: dict[GpuName, Gpu] = {
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        fpus_per_core=128,
        threads_per_core=2048,
        shared_memory_per_core=233_472,
        shared_memory_per_block=232_448,
        l2_cache=52_428_800,
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        clock_ghz=1.98,
        accelerated=True,
    ),
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        fpus_per_core=64,
        threads_per_core=2048,
        shared_memory_per_core=167_936,
        shared_memory_per_block=166_912,
        l2_cache=41_943_040,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        clock_ghz=1.41,
    ),
    "t4": Gpu(
        name="Tesla T4",
        capability=(7, 5),
        cores=40,
        fpus_per_core=64,
        threads_per_core=1024,
        shared_memory_per_core=65_536,
        shared_memory_per_block=65_536,
        l2_cache=4_194_304,
        memory=15_843_721_216,
        bandwidth=320_064_000_000,
        clock_ghz=1.59,
    ),
    "v100": Gpu(
        name="Tesla V100-SXM2-16GB",
        capability=(7, 0),
        cores=80,
        fpus_per_core=64,
        threads_per_core=2048,
        shared_memory_per_core=98_304,
        shared_memory_per_block=98_304,
        l2_cache=6_291_456,
        memory=16_945_512_448,
        bandwidth=898_048_000_000,
        clock_ghz=1.53,
    ),
}

_CUDA = "12.8.0"
"""The toolkit of the GPU's imagined machine. XLA chooses instructions by it."""

_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory_per_core}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  threads_per_core_limit: {gpu.threads_per_core}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} {feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_vendor: "NVIDIA Corporation"
  name: "{gpu.name}"
  driver_version: "13.0.0"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def target_config(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto of a GPU, as text."""
    feature = "feature_extension: ACCELERATED_FEATURES" if gpu.accelerated else ""
    return _TARGET_CONFIG.format(gpu=gpu, feature=feature, cuda=_CUDA)
