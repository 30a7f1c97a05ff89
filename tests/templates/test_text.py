"""Templates: what is rendered on device is what the host would have encoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.records import check
from t5x_selfimprove.templates import Template, concatenate
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.consolidation.batches import Spelled
from tests.templates.batches import questions_of
from tests.vocabulary import made

BYTES = ByteVocabulary()
LETTERS = Spelled((b'', b'', b'a', b'b', b'?'))  # no begin-of-text


def test_ragged_rows_are_joined_without_gaps():
    tokens, length = concatenate(
        [
            jnp.array([[5, 6, 0], [7, 0, 0], [8, 8, 8]]),
            jnp.zeros((3, 0), jnp.int32),
            jnp.array([[1, 0], [2, 3], [4, 0]]),
        ],
        [jnp.array([2, 1, 3]), jnp.zeros(3, jnp.int32), jnp.array([1, 2, 0])],
        room=5,
        pad=9,
    )
    assert tokens.tolist() == [[5, 6, 1, 9, 9], [7, 2, 3, 9, 9], [8, 8, 8, 9, 9]]
    assert length.tolist() == [3, 3, 3]


def test_what_stands_behind_a_length_is_never_read():
    tokens, _ = concatenate([jnp.array([[1, 77, 77]]), jnp.array([[2, 77]])], [jnp.array([1]), jnp.array([1])], 5, 0)
    assert tokens.tolist() == [[1, 2, 0, 0, 0]]


@pytest.mark.parametrize('text', ['{question}', 'Q: {question}', 'Q: {question}\nA:', '{question} A:'])
def test_prompts_equal_the_encoded_text(text):
    template, asked = Template(BYTES, text), ['Why?', '', 'How many are there']
    prompts = jax.jit(template)(questions_of(BYTES, asked, room=20))
    check(prompts)
    for row, question in enumerate(asked):
        mine = [*prompts.prefix.tolist(), *prompts.tokens[row, : prompts.length[row]].tolist()]
        assert mine == [BYTES.bos_id, *BYTES.encode(text.replace('{question}', question))]
        assert (prompts.tokens[row, prompts.length[row] :] == BYTES.pad_id).all()
    assert prompts.tokens.shape[1] == 20 + len(text.split('{question}')[1])
    np.testing.assert_array_equal(prompts.id, np.arange(6).reshape(3, 2))


@pytest.mark.parametrize('text', ['Q: {question}', 'Q: {question} A:', '{question}\nA:', '{question}'])
def test_a_vocabulary_that_puts_a_space_before_a_text_puts_no_second_one(text, tmp_path):
    llama_pieces = made.llama_pieces(tmp_path / 'tokenizer.model')
    template = Template(llama_pieces, text)
    question = llama_pieces.encode('Why?')
    assert [*template.before, *question, *template.after] == [
        1,
        *llama_pieces.encode(text.replace('{question}', 'Why?')),
    ]


def test_a_prompt_may_end_in_end_of_text():
    plain, ended = (Template(BYTES, 'Q: {question} A:', ends=ends) for ends in (False, True))
    assert ended.before == plain.before and ended.after == (*plain.after, BYTES.eos_id)
    assert jax.jit(ended)(questions_of(BYTES, ['ab', 'c'], 3)).length.tolist() == [2 + 4, 1 + 4]


def test_without_begin_of_text_the_prefix_may_be_empty():
    assert Template(LETTERS).before == ()
    prompts = Template(LETTERS, '{question}?')(questions_of(LETTERS, ['ab', 'b'], 2))
    assert prompts.prefix.shape == (0,) and prompts.prefix.dtype == jnp.int32
    assert prompts.tokens.tolist() == [[2, 3, 4], [3, 4, 0]]


def test_a_template_is_a_value():
    assert Template(BYTES, 'Q: {question}') == Template(BYTES, 'Q: {question}')
    assert hash(Template(BYTES, 'Q: {question}')) == hash(Template(BYTES, 'Q: {question}'))
    assert Template(BYTES, 'Q: {question}') != Template(BYTES, '{question}')


@pytest.mark.parametrize(('text', 'times'), [('no slot', 0), ('{question} and {question}', 2)])
def test_a_template_needs_one_slot(text, times):
    with pytest.raises(ValueError, match=rf'exactly once; this one {times} times'):
        Template(BYTES, text)


def test_text_that_cannot_be_spelled_is_refused_at_once():
    with pytest.raises(ValueError):
        Template(LETTERS, 'Question: {question}')


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match='at least one token'):
        Template(LETTERS)(questions_of(LETTERS, ['', ''], 0))
