"""What XLA is told of a GPU to compile for one that is not there: a `GpuTargetConfigProto` as text.

Numbers are those of XLA's own descriptions (openxla/xla, xla/backends/gpu/target_config/specs: h100_sxm, h200).
"""


def hopper(name: str, memory: int, bandwidth: float) -> str:
    """A GPU of compute capability 9.0.

    Args:
      name: as CUDA calls it.
      memory: bytes.
      bandwidth: of the memory, bytes a second.
    """
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: 233472
          threads_per_core_limit: 2048
          core_count: 132
          fpus_per_core: 128
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {bandwidth:.0f}
          l2_cache_size: 52428800
          clock_rate_ghz: 1.98
          device_memory_size: {memory}
          shared_memory_per_block_optin: 232448
          cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{name}"
    """
