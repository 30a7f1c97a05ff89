"""Where the time of a run goes: profiles of chosen rounds, and the share of the devices' arithmetic that is used."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from t5x_selfimprove.models.config import ModelConfig, TransformerConfig
from t5x_selfimprove.models.parameters import logical_axes
from t5x_selfimprove.partitioning import PEAK_FLOPS

FOLDER = 'profile'  # in the run directory


def traced(directory: Path, chosen: Collection[int], numbers: Collection[int]) -> contextlib.AbstractContextManager:
    """Profiles what runs inside it where one of the rounds `numbers` is chosen; every process writes its own devices'.

    The files are those of jax.profiler, for `xprof` and TensorBoard's profile plugin.
    """
    if not set(chosen) & set(numbers):
        return contextlib.nullcontext()
    options = jax.profiler.ProfileOptions()
    # Python's calls are left out: their tracer hooks into every thread, and was seen to crash a process that had many.
    options.python_tracer_level = 0
    return jax.profiler.trace(str(directory / FOLDER), profiler_options=options)


def utilization(
    parameters: float, sampled: float, trained: float, seconds: float, devices: list[jax.Device]
) -> float | None:
    """Model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, without attention).

    2 operations a parameter for each sampled token and 6 for each trained one, whatever was padding, recomputed or read
    of prompts; as a share of what the devices do at most in bfloat16.

    Args:
      parameters: that a token meets.
      sampled: tokens drawn.
      trained: tokens that the loss is of.
      seconds: that both took together.
      devices: of the run.

    Returns:
      The share, or None for devices whose peak is not known, as CPUs.
    """
    peak = PEAK_FLOPS.get(devices[0].device_kind)
    return None if peak is None else parameters * (2 * sampled + 6 * trained) / (seconds * peak * len(devices))


def met(model: Any, config: ModelConfig) -> float:
    """Parameters that a token meets: of the experts of a mixture, those that it is sent to.

    Args:
      model: or its shapes.
      config: of the model.
    """
    experts = config.experts if isinstance(config, TransformerConfig) else None
    total = 0.0
    for leaf, axes in zip(jax.tree.leaves(model), logical_axes(model), strict=True):
        routed = experts is not None and axes is not None and {'experts', 'expert_feed_forward'} <= set(axes.names)
        total += leaf.size * (experts.chosen / experts.count if routed else 1)
    return total
