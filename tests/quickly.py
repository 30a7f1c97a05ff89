"""Flags by which XLA compiles for a CPU in a third of the time, which is most of what the suite takes.

They go with JAX_DISABLE_MOST_OPTIMIZATIONS, which leaves LLVM's optimizations out. XLA's passes and buffers are those
of users; the order of sums within a fused loop may not be.
"""

OLDER_EMITTER = '--xla_cpu_use_fusion_emitters=false'
FLAGS = f'{OLDER_EMITTER} --xla_cpu_parallel_codegen_split_count=1'
