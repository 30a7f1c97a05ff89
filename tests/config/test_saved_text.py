"""A built configuration is saved as text that builds an equal one."""

import random
import textwrap

import pytest

from t5x_selfimprove import config
from t5x_selfimprove.config.statements import literal
from tests.config.toys import TABLE, Adafactor, AdamW, Evaluate, Improve, Nest, Sampler, Stage, build


def rebuilt(text: str, root: str = 'train.Improve') -> config.Built:
    with open('saved.gin', 'w', encoding='utf-8') as file:
        file.write(text)
    return config.build(root, ['saved.gin'], (), TABLE)


def random_sampler(draw: random.Random) -> Sampler:
    pieces = ['a', "it's", '"', '\n', '\\', '#', '%X', '@y()', 'é', '\u2028', '\x00', 'x = 3\n', ' ' * 50]
    stops = tuple(''.join(draw.choices(pieces, k=draw.randrange(12))) for _ in range(draw.randrange(4)))
    return Sampler(draw.choice([0.0, 1e-300, 1e22, 0.1, -2.5]), draw.choice([None, 1, -3]), 'greedy', stops)


@pytest.mark.parametrize('seed', range(12))
def test_the_effective_text_builds_an_equal_value(folder, seed):
    draw = random.Random(seed)
    optimizers = [AdamW(draw.choice([0.1, 2.0]), 0.3), Adafactor(0.5), AdamW(7.0, betas=(1e-9, 1.0))]
    samplers = [random_sampler(draw), random_sampler(draw), Sampler()]
    stages = tuple(
        Stage(draw.randrange(3), draw.choice(optimizers), draw.choice(samplers)) for _ in range(draw.randrange(5))
    )
    value = Improve('x', stages, seed, draw.choice([None, 'long ' * 60 + '\nlines\n\n' + "it's " * 60]))
    text = config.effective('train.Improve', value, TABLE)
    built = rebuilt(text)
    assert built.value == value
    assert built.text == text and built.set_aside == ()
    assert rebuilt(built.said).value == value


def test_effective_text_of_a_root_inside_a_root(folder):
    value = Nest((Nest(Nest(3)), Nest(Nest()), Sampler()))
    built = rebuilt(config.effective('nest.Nest', value, TABLE), 'nest.Nest')
    assert built.value == value


def test_saved_texts_of_a_build(folder):
    built = build('train.Improve.note=hello')
    assert rebuilt(built.text).value == built.value
    assert rebuilt(built.said).value == built.value
    assert "train.Improve.note = 'hello'  # command line" in built.said
    assert 'learning.AdamW.decay = 0.1' in built.text and 'decay' not in built.said
    assert 'learning.Adafactor.clip = 1e999' in build('OPTIMIZER=@learning.Adafactor()').text


@pytest.mark.parametrize('value', [object(), float('nan'), 3j, {1}, textwrap, Exception, random.Random])
def test_what_gin_cannot_say_is_an_error(value):
    with pytest.raises(ValueError, match='gin cannot say'):
        literal(value)
    with pytest.raises(config.ConfigError, match=r'nest.Nest.inner: gin cannot say'):
        config.effective('nest.Nest', Nest(value), TABLE)


def test_a_part_without_a_name_is_an_error():
    without = {name: part for name, part in TABLE.items() if name != 'sampling.Sampler'}
    with pytest.raises(config.ConfigError, match=r'ask.Evaluate.sampler holds a Sampler') as caught:
        config.effective('ask.Evaluate', Evaluate('x'), without)
    assert 'add the class to TABLE' in str(caught.value)


def test_differences():
    before = config.effective('ask.Evaluate', Evaluate('x', Sampler(stops=('q' * 200 + 'a',))), TABLE)
    after = config.effective('ask.Evaluate', Evaluate('x', Sampler(0.5, stops=('q' * 200 + 'b',))), TABLE)
    found = config.differences(before, after + 'A = 3\n')
    assert found[0] == 'sampling.Sampler.temperature: 1.0 before, 0.5 now'
    assert found[1].startswith('sampling.Sampler.stops: ...qqq') and "a',)" in found[1] and "b',) now" in found[1]
    assert found[2] == 'A: 3, not there before' and len(found) == 3
    assert config.differences(before, before) == []
