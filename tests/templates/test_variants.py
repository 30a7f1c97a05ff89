"""Several prompts for the same question."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.learning.lessons import examples_of
from t5x_selfimprove.records import Questions, Samples, check
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template, Variants
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.models.tiny import model

BYTES = ByteVocabulary()
TEXTS = ('Q: think. {question} A:', 'Q: think hard. {question}', 'Q: {question}?')


def questions(texts):
    room = max(map(len, texts))
    tokens = [[*BYTES.encode(text), *[BYTES.pad_id] * (room - len(text))] for text in texts]
    rows = len(texts)
    return Questions(
        tokens=jnp.array(tokens, jnp.int32),
        length=jnp.array([len(text) for text in texts], jnp.int32),
        answer=jnp.zeros((rows, 4), jnp.uint8),
        known=jnp.zeros(rows, bool),
        weight=jnp.ones(rows, jnp.float32),
        id=jnp.stack([jnp.zeros(rows), jnp.arange(rows)], 1).astype(jnp.uint32),
    )


ASKED = questions(['two', 'three'])
VARIANTS = Variants(tuple(Template(BYTES, text) for text in TEXTS))


def texts_of(prompts):
    prefix = BYTES.decode(np.asarray(prompts.prefix))
    rows = zip(np.asarray(prompts.tokens), np.asarray(prompts.length), strict=True)
    return [prefix + BYTES.decode(row[:length]) for row, length in rows]


def test_each_question_is_rendered_in_every_variant():
    prompts = VARIANTS(ASKED)
    check(prompts)
    assert BYTES.decode(np.asarray(prompts.prefix)) == 'Q: '
    wanted = [text.replace('{question}', question) for question in ('two', 'three') for text in TEXTS]
    assert texts_of(prompts) == wanted
    one = Variants((Template(BYTES, TEXTS[0]),))(ASKED)
    assert texts_of(one) == texts_of(Template(BYTES, TEXTS[0])(ASKED))


@pytest.mark.parametrize('samples', [6, 4])
def test_sample_i_reads_variant_i_mod_k(samples):
    """A sample draws what it draws where its prompt is the only one; four samples do not divide by three prompts."""
    tiny, key = model(BYTES.size), jax.random.key(0)
    sampler = Sampler(BYTES, samples=samples, max_tokens=5, slots=5, period=2)
    draw = jax.jit(lambda template: sampler(tiny, template(ASKED), key), static_argnums=0)
    got = draw(VARIANTS)
    for number, template in enumerate(VARIANTS.templates):
        alone = draw(template)
        mine = np.arange(2 * samples) % samples % len(TEXTS) == number
        np.testing.assert_array_equal(got.tokens[mine], alone.tokens[mine])
    first = [draw(template).tokens for template in VARIANTS.templates[:2]]
    assert (first[0] != first[1]).any()


def test_a_path_is_learnt_after_the_prompt_that_it_read():
    samples = Samples(
        tokens=jnp.full((8, 2), 70, jnp.int32),
        mask=jnp.ones((8, 2), bool),
        log_probs=jnp.zeros((8, 2)),
        ended=jnp.ones(8, bool),
    )
    examples = examples_of(VARIANTS(ASKED), samples, jnp.ones(8), BYTES.pad_id)
    for row in range(8):
        question, template = ('two', 'three')[row // 4], TEXTS[row % 4 % 3]
        read = BYTES.decode(np.asarray(examples.tokens[row, : examples.prompt_length[row]]))
        assert read == template.replace('{question}', question)


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match='at least one template'):
        Variants(())
