"""What is measured of a family: our logits and tokens against those of transformers, in float32."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.models.hugging_face import made

ROWS, TIME, STEPS = 3, 24, 64
OFFSET = 9  # of positions that do not start at 0
LENGTHS = np.array([24, 15, 7])

CHECKS = ('whole rows', 'padding right', 'padding left', 'positions from 9')


def inputs(check: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, positions and what is no padding, [B, T] each."""
    place = np.broadcast_to(np.arange(TIME, dtype=np.int32), (ROWS, TIME))
    ids, seen = made.tokens(ROWS, TIME), np.ones((ROWS, TIME), np.int32)
    if check == 'padding right':
        seen = (place < LENGTHS[:, None]).astype(np.int32)
    if check == 'padding left':
        seen = (place >= TIME - LENGTHS[:, None]).astype(np.int32)
        place = np.maximum(place - (TIME - LENGTHS[:, None]), 0).astype(np.int32)
    if check == 'positions from 9':
        place = place + OFFSET
    return ids, place, seen


def relative(ours: np.ndarray, theirs: np.ndarray, seen: np.ndarray) -> float:
    """Largest absolute difference of logits that are no padding, in parts of the largest logit."""
    gap = np.abs(ours - theirs)[seen > 0].max()
    return float(gap / np.abs(theirs[seen > 0]).max())


def logits_differ(theirs: Any, ours: Any, check: str) -> float:
    """`relative` difference of one check."""
    ids, place, seen = inputs(check)
    wanted = made.torch_logits(theirs, ids, place, seen)
    return relative(np.asarray(made.our_logits(ours, *map(jnp.asarray, (ids, place, seen)))), wanted, seen)


def tokens_equal(theirs: Any, ours: Any) -> int:
    """How many of the first STEPS greedy tokens are the same in all rows, prompts of several lengths."""
    ids = made.tokens(ROWS, TIME, seed=1)
    wanted = made.torch_greedy(theirs, ids, LENGTHS, STEPS)
    return count_equal(made.our_greedy(ours, jnp.asarray(ids), jnp.asarray(LENGTHS, jnp.int32), STEPS), wanted)


def count_equal(ours: Any, theirs: np.ndarray) -> int:
    """How many of the first STEPS tokens are the same in all rows, [B, STEPS] each."""
    same = (np.asarray(ours) == theirs).all(axis=0)
    return STEPS if same.all() else int(np.argmin(same))
