"""What is measured of a family of encoder-decoders, as `parity` measures the others."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.records import Sources
from tests.models import tiny_t5
from tests.models.hugging_face import made, made_t5
from tests.models.hugging_face.parity import OFFSET, STEPS, count_equal, relative

PROMPT, ROOM = 40, 30  # tokens; longer than the furthest distance of the position bias
PROMPTS, COMPLETIONS = np.array([PROMPT, 17, 1]), np.array([ROOM, 9, 22])  # lengths


def logits_differ(theirs: Any, ours: Any, check: str) -> float:
    """`relative` difference of one check. Padding is that of the prompts, positions are those of the completions."""
    rows = len(PROMPTS)
    place = np.broadcast_to(np.arange(PROMPT), (rows, PROMPT))
    padded = {'padding right': place < PROMPTS[:, None], 'padding left': place >= PROMPT - PROMPTS[:, None]}
    seen = padded.get(check, np.ones((rows, PROMPT), bool))
    prompts = made_t5.tokens(rows, PROMPT, seed=0) * seen
    completions = made_t5.tokens(rows, ROOM, seed=1)
    completions[:, 0] = 0  # the start token
    place = np.broadcast_to(np.arange(ROOM), (rows, ROOM)) + (OFFSET if check == 'positions from 9' else 0)
    inside = np.ones((rows, ROOM), bool) if check == 'whole rows' else np.arange(ROOM) < COMPLETIONS[:, None]
    wanted = made_t5.torch_logits(theirs, prompts, seen, completions)
    source = Sources(jnp.asarray(prompts), jnp.asarray(seen, jnp.int32))
    completions, place, segment = (jnp.asarray(each, jnp.int32) for each in (completions, place, inside))
    return relative(np.asarray(tiny_t5.forward_logits(ours, completions, place, segment, source)), wanted, inside)


def tokens_equal(theirs: Any, ours: Any) -> int:
    """How many of the first STEPS greedy tokens are the same in all rows, prompts of several lengths."""
    prompts, seen = made_t5.tokens(len(PROMPTS), PROMPT, seed=0), np.arange(PROMPT) < PROMPTS[:, None]
    wanted = made_t5.torch_greedy(theirs, prompts * seen, seen, STEPS)
    return count_equal(made.our_greedy(ours, jnp.asarray(prompts), jnp.asarray(PROMPTS, jnp.int32), STEPS), wanted)
