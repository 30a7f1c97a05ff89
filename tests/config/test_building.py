"""What is right builds: in order, with scopes, with words on the command line, and again the same."""

import gin
import pytest

from t5x_selfimprove import config
from tests.config.toys import TABLE, Adafactor, AdamW, Improve, Sampler, Stage, build, write, wrong


def test_builds(folder):
    built = build()
    assert built.value == Improve('runs/x', (Stage(100, AdamW(1e-3)),))
    assert built.set_aside == ()


def test_later_wins_and_a_file_is_read_once(folder):
    write(a="include 'good.gin'\nPEAK = 2.0\n", b="include 'good.gin'\nimprove.Stage.steps = 7\n")
    (stage,) = build('train.Improve.seed=5', 'train.Improve.seed=6', files=('a.gin', 'b.gin')).value.stages
    assert stage == Stage(7, AdamW(2.0))  # b includes good.gin again and does not undo a
    assert build('train.Improve.seed=5', 'train.Improve.seed=6').value.seed == 6


def test_a_replaced_part_takes_its_bindings_along(folder):
    built = build('OPTIMIZER=@learning.Adafactor()')
    assert built.value.stages[0].optimizer == Adafactor()
    assert built.set_aside == ('good.gin:2: PEAK = 1e-3', 'good.gin:9: learning.AdamW.peak = %PEAK')
    assert 'AdamW' not in built.said
    assert len(wrong('OPTIMIZER=@learning.Adafactor()', 'PEEK=3')) == 1


def test_bindings_of_another_command_are_set_aside(folder):
    write(both="include 'good.gin'\nask.Evaluate.run_dir = 'x'\nask.Evaluate.sampler = @eval/sampling.Sampler()\n")
    built = build('eval/sampling.Sampler.temperature=0', files=('both.gin',))
    assert len(built.set_aside) == 3
    assert built.value == build().value
    assert build(
        'eval/sampling.Sampler.temperature=0', root='ask.Evaluate', files=('both.gin',)
    ).value.sampler == Sampler(0.0)
    assert 'did you mean eval/' in wrong('evl/sampling.Sampler.top_k=3', root='ask.Evaluate', files=('both.gin',))[0]


def test_scopes(folder):
    built = build(
        'train.Improve.stages=(@stage_1/improve.Stage(), @stage_2/improve.Stage())',
        'stage_2/learning.AdamW.peak=2',  # through the macro OPTIMIZER, which changes no scope
        'stage_1/sampling.Sampler.top_k=40',
    )
    assert built.value.stages == (Stage(100, AdamW(1e-3), Sampler(top_k=40)), Stage(100, AdamW(2.0)))


def test_a_function_that_makes_a_part(folder):
    built = build('improve.Stage.sampler=@sampling.greedy()', 'sampling.greedy.top_k=3')
    assert built.value.stages[0].sampler == Sampler(0.0, 3, 'greedy', check=True)
    assert 'sampling.Sampler.top_k = 3' in built.text and 'sampling.greedy' not in built.text
    (found,) = wrong('improve.Stage.sampler=@sampling.greedy()')
    assert 'sampling.greedy.top_k (int) must be bound: how many tokens stay in play.' in found
    (found,) = wrong('improve.Stage.sampler=3')
    assert 'one of @sampling.Sampler(), @sampling.greedy()' in found


WORDS = {
    '/data/x': '/data/x',
    'gs://bucket/x-1': 'gs://bucket/x-1',
    'word': 'word',
    '2024-01-01': '2024-01-01',
    'a#b': 'a#b',
    '3#b': '3#b',
    'two words': 'two words',
    "'quoted'": 'quoted',
    "''": '',
    'None': None,
}


@pytest.mark.parametrize('text', WORDS)
def test_words_on_the_command_line_need_no_quotes(folder, text):
    assert build(f'train.Improve.note={text}').value.note == WORDS[text]


def test_values_on_the_command_line_stay_python(folder):
    built = build(
        'sampling.Sampler.check=True', 'sampling.Sampler.temperature=1', 'sampling.Sampler.top_k=1_000',
        "sampling.Sampler.stops=('a', 'b c')", 'learning.AdamW.betas=[1, 2e-1]', 'PEAK=%OTHER', 'OTHER=.5',
    )  # fmt: skip
    (stage,) = built.value.stages
    assert stage == Stage(100, AdamW(0.5, betas=(1.0, 0.2)), Sampler(1.0, 1000, stops=('a', 'b c'), check=True))
    assert type(stage.sampler.temperature) is float  # an int that is wanted as float becomes one


def test_half_values_on_the_command_line(folder):
    found = '\n'.join(
        wrong('train.Improve.note=', 'PEAK=(1', 'OPTIMIZER=@learning.AdamW(', 'a b=3', 'sampling.Sampler.check=true')
    )
    assert '--gin.train.Improve.note=\n    for empty text write "--gin.train.Improve.note=\'\'"' in found
    assert '(1 is not a whole value' in found and '@learning.AdamW( is not a whole value' in found
    assert 'not a binding\n        --gin.a b=3' in found and 'write True' in found


def test_builds_do_not_touch_each_other(folder):
    first = build()
    with pytest.raises(config.ConfigError):
        build('PEEK=3', 'learning.AdamW.decay=9')
    build('OPTIMIZER=@learning.Adafactor()', 'train.Improve.seed=4')
    other = {**TABLE, 'learning.AdamW': Adafactor}  # the same name for another class
    assert isinstance(config.build('train.Improve', ['good.gin'], [], other).value.stages[0].optimizer, Adafactor)
    again = build()
    assert again == first
    assert gin.config_str().strip() == '' and not gin.config_is_locked()
    stages = 'train.Improve.stages=(@improve.Stage(), @stage_1/improve.Stage())'
    with gin.config_scope('stage_1'):  # neither does somebody else's scope
        one, two = build(stages, 'stage_1/improve.Stage.steps=7').value.stages
    assert (one.steps, two.steps) == (100, 7)
