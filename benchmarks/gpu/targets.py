"""The GPUs that programs are compiled for, as XLA's compiler describes a device."""

from typing import Literal, NamedTuple

GpuName = Literal["h100", "a100", "t4", "v100"]

REACHABLE = 0.9
"""The share of a data sheet's memory bandwidth that a copy reaches."""


class Gpu(NamedTuple):
    """A device that XLA compiles for."""

    name: str
    """JAX's `device_kind`."""
    bandwidth: int
    """Memory bandwidth in bytes per second."""
    facts: str
    """The other fields of XLA's GpuDeviceInfoProto that differ between GPUs, as text."""


# From NVIDIA's data sheets, in the units of CUDA's device properties.
GPUS: dict[GpuName, Gpu] = {
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        3_352_320_000_000,
        """
        cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
        core_count: 132  fpus_per_core: 128  threads_per_core_limit: 2048  clock_rate_ghz: 1.98
        shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
        l2_cache_size: 52428800  device_memory_size: 84942979072
        """,
    ),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        2_039_040_000_000,
        """
        cuda_compute_capability { major: 8 minor: 0 }
        core_count: 108  fpus_per_core: 64  threads_per_core_limit: 2048  clock_rate_ghz: 1.41
        shared_memory_per_core: 167936  shared_memory_per_block_optin: 166912
        l2_cache_size: 41943040  device_memory_size: 85100068864
        """,
    ),
    "t4": Gpu(
        "Tesla T4",
        320_064_000_000,
        """
        cuda_compute_capability { major: 7 minor: 5 }
        core_count: 40  fpus_per_core: 64  threads_per_core_limit: 1024  clock_rate_ghz: 1.59
        shared_memory_per_core: 65536  shared_memory_per_block_optin: 65536
        l2_cache_size: 4194304  device_memory_size: 15843721216
        """,
    ),
    "v100": Gpu(
        "Tesla V100-SXM2-16GB",
        898_048_000_000,
        """
        cuda_compute_capability { major: 7 minor: 0 }
        core_count: 80  fpus_per_core: 64  threads_per_core_limit: 2048  clock_rate_ghz: 1.53
        shared_memory_per_core: 98304  shared_memory_per_block_optin: 98304
        l2_cache_size: 6291456  device_memory_size: 16945512448
        """,
    ),
}


def target_config(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto of a GPU, as text.

    XLA chooses instructions by the versions; these are of a hypothetical machine with CUDA 12.8 and
    a driver for CUDA 13.0.
    """
    return f"""
gpu_device_info {{
  name: "{gpu.name}"  device_vendor: "NVIDIA Corporation"  memory_bandwidth: {gpu.bandwidth}
  {gpu.facts}
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  driver_version: "13.0.0"  runtime_version: "12.8.0"  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""
