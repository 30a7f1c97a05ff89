"""Where a path ends: at a token that ends text, or at a text, wherever it lies across tokens."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from t5x_selfimprove.vocabulary import Vocabulary, spelling_table


@functools.lru_cache(maxsize=16)
def automaton(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The machine that finds any of the texts in a stream of bytes (Aho and Corasick 1975).

    Returns:
      (next, found): int32[states, 256], the state after a byte; and int32[states], the length in bytes of the longest
      text that ends in the state, 0 where none does. State 0 is the start.
    """
    next_state: list[dict[int, int]] = [{}]
    found = [0]
    for text in texts:
        state = 0
        for byte in text.encode():
            if byte not in next_state[state]:
                next_state[state][byte] = len(next_state)
                next_state.append({})
                found.append(0)
            state = next_state[state][byte]
        found[state] = max(found[state], len(text.encode()))
    table = np.zeros((len(next_state), 256), np.int32)
    for byte, state in next_state[0].items():
        table[0, byte] = state
    fallen = [0] * len(next_state)  # the longest end of a state that is a beginning, too
    queue = collections.deque(next_state[0].values())
    while queue:
        state = queue.popleft()
        found[state] = max(found[state], found[fallen[state]])
        table[state] = table[fallen[state]]
        for byte, after in next_state[state].items():
            fallen[after] = int(table[fallen[state], byte])
            table[state, byte] = after
            queue.append(after)
    return table, np.array(found, np.int32)


def read(
    vocabulary: Vocabulary, texts: tuple[str, ...], state: Int32[Array, 'S'], tokens: Int32[Array, 'S']
) -> tuple[Int32[Array, 'S'], Bool[Array, 'S']]:
    """Reads the bytes of one token of each path.

    Args:
      vocabulary: that spells the tokens.
      texts: that end a path.
      state: of the automaton.
      tokens: of the vocabulary.

    Returns:
      The state after, and whether one of the texts ended within the token.
    """
    table, found = (jnp.asarray(array) for array in automaton(texts))
    spelled, length = (jnp.asarray(array) for array in spelling_table(vocabulary))
    spelled, length = spelled[tokens], length[tokens]

    def byte(carry: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        state, stopped = carry
        inside = place < length
        after = table[state, spelled[:, place]]
        return (jnp.where(inside, after, state), stopped | (inside & (found[after] > 0))), None

    (state, stopped), _ = jax.lax.scan(byte, (state, jnp.zeros(state.shape, bool)), jnp.arange(spelled.shape[1]))
    return state, stopped


def kept(
    vocabulary: Vocabulary, texts: tuple[str, ...], tokens: Int32[Array, 'S C'], mask: Bool[Array, 'S C']
) -> Bool[Array, 'S C']:
    """The mask without the tokens that lie wholly in the text that ended a path; the one that holds the beginning of
    the text, and something before it, is kept.

    Args:
      vocabulary: that spells the tokens.
      texts: that end a path.
      tokens: of finished paths.
      mask: of their tokens.
    """
    table, found = (jnp.asarray(array) for array in automaton(texts))
    spelled, length = (jnp.asarray(array) for array in spelling_table(vocabulary))
    length = jnp.where(mask, length[tokens], 0)
    begin = jnp.cumsum(length, axis=1) - length  # of each token, in bytes

    def token(carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], None]:
        def byte(place: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            state, cut = carry
            inside = place < size
            after = table[state, letters[:, place]]
            here = start + place + 1 - found[after]
            cut = jnp.where(inside & (found[after] > 0) & (cut == NOWHERE), here, cut)
            return jnp.where(inside, after, state), cut

        tokens, size, start = inputs
        letters = spelled[tokens]
        return jax.lax.fori_loop(0, letters.shape[1], byte, carry), None

    nowhere = jnp.full(tokens.shape[0], NOWHERE)
    columns = jax.tree.map(lambda array: array.T, (tokens, length, begin))
    (_, cut), _ = jax.lax.scan(token, (jnp.zeros(tokens.shape[0], jnp.int32), nowhere), columns)
    return mask & (begin < cut[:, None])


NOWHERE = np.int32(2**31 - 1)
