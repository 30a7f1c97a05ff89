"""Texts that end a path, wherever they lie across tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.sampling import stops
from t5x_selfimprove.sampling.sampler import Sampler
from tests.consolidation.batches import Spelled
from tests.sampling.tables import certain, constant, prompts_of

#                    pad  eos  2     3      4      5     6        7
PIECES = Spelled((b'', b'', b'x', b'\nQ', b'x\n', b'Q:', b'x\nQ:z', b'\xc3'))


@pytest.mark.parametrize('texts', [('ab',), ('aba', 'ba'), ('he', 'she', 'his', 'hers'), ('aa', 'aaa'), ('é', 'x')])
def test_the_automaton_finds_what_str_finds(texts):
    table, found = stops.automaton(texts)
    generator = np.random.default_rng(0)
    letters = sorted({letter for text in texts for letter in text} | {'q'})
    for _ in range(50):
        text, state = ''.join(generator.choice(letters, 12)).encode(), 0
        for place, byte in enumerate(text):
            state = table[state, byte]
            ends = [len(one.encode()) for one in texts if text[: place + 1].endswith(one.encode())]
            assert found[state] == max(ends, default=0)


def cut(tokens, texts, room=5):
    sampler = Sampler(PIECES, samples=1, max_tokens=room, stop=texts)
    got = jax.jit(lambda: sampler(certain([*tokens, *[2] * 6], 8), prompts_of([[2]]), jax.random.key(0)))()
    return got.tokens[0][got.mask[0]].tolist(), bool(got.ended[0])


@pytest.mark.parametrize(
    ('tokens', 'kept'),
    [
        ([2, 3, 5, 2, 2], [2, 3, 5, 2, 2]),  # x \nQ Q: is not \nQ:
        ([2, 4, 5], [2, 4]),  # x x\n Q: the token that begins before the text stays
        ([6], [6]),  # the text lies within a token
        ([2, 6], [2, 6]),
        ([7, 2, 4, 5], [7, 2, 4]),
    ],
)
def test_a_path_ends_at_a_text(tokens, kept):
    got, ended = cut(tokens, ('\nQ:',))
    assert got == kept and ended == (kept != [2, 3, 5, 2, 2])


def test_texts_that_begin_a_token_take_the_token_with_them():
    assert cut([2, 3, 2], ('\nQ',)) == ([2], True)
    assert cut([3], ('Q', '\nQ')) == ([], True)
    assert cut([2, 2, 3], ('xx', '\nQ')) == ([], True)


def test_what_was_cut_off_is_nowhere():
    uniform = constant([[-np.inf, -np.inf] + [0.0] * 6] * 9)
    sampler = Sampler(PIECES, samples=300, max_tokens=8, stop=('xx', 'Q:'), slots=100, period=3, tail=(0.5,))
    got = jax.jit(lambda: sampler(uniform, prompts_of([[2]]), jax.random.key(1)))()
    arrays = map(np.asarray, (got.tokens, got.mask, got.log_probs, got.ended))
    for tokens, mask, log_probs, ended in zip(*arrays, strict=True):
        text = b''.join(PIECES.spellings[token] for token in tokens[mask])
        whole = [text.find(stop) for stop in (b'xx', b'Q:')]
        last = len(PIECES.spellings[tokens[mask][-1]]) if mask.any() else 0
        assert all(place < 0 or (ended and place > len(text) - last) for place in whole), text
        assert (tokens[~mask] == 0).all() and (log_probs[~mask] == 0).all()
        assert ended or mask.sum() == 8
    assert 0.5 < jnp.mean(got.ended) < 1
