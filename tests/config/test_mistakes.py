"""Every kind of mistake in a configuration is found, placed, and met with the nearest right name; all at once."""

import pytest

from tests.config.toys import build, write, wrong

# What is added to good.gin, and for each problem the pieces that its message must hold.
MISTAKES = {
    'unknown part': ('learning.AdmW.decay = 0.2', [['more.gin:2:', 'no part learning.AdmW', 'mean learning.AdamW?']]),
    'bare class': ('AdamW.decay = 0.2', [['more.gin:2:', 'no part AdamW', 'did you mean learning.AdamW?']]),
    'unknown field': ('learning.AdamW.dekay = 0.2', [['more.gin:2:', 'no field dekay', 'mean learning.AdamW.decay?']]),
    'far field': ('learning.AdamW.colour = 2', [['more.gin:2:', 'no field colour', 'its fields: peak, decay, betas']]),
    'a part is bound': ('learning.AdamW = 2', [['more.gin:2:', 'learning.AdamW is a part', 'peak, decay, betas']]),
    'unknown reference': (
        'improve.Stage.optimizer = @learning.Adafctor()\nlearning.Adafactor.clip = %CLIP\nCLIP = 2.0',
        [['more.gin:2:', 'no part learning.Adafctor', '@learning.Adafctor()', 'did you mean learning.Adafactor?']],
    ),
    'reference without brackets': (
        'improve.Stage.optimizer = @learning.Adafactor\nlearning.Adafactor.clip = 2.0',
        [['more.gin:2:', 'does not build it', 'write @learning.Adafactor()']],
    ),
    'nested scopes in a reference': (
        'improve.Stage.optimizer = @a/b/learning.Adafactor()\nlearning.Adafactor.clip = 2.0',
        [['more.gin:2:', 'scopes are not nested: a/b/']],
    ),
    'unknown macro': ('train.Improve.seed = %PEEK', [['more.gin:2:', 'nothing binds the macro %PEEK', 'mean %PEAK?']]),
    'macro nobody reads': ('PEAKZ = 3', [['more.gin:2:', 'nothing reads the macro PEAKZ', 'PEAKZ = 3', 'mean PEAK?']]),
    'lower-case macro': ('peak = 3', [['more.gin:2:', 'peak is neither a macro (UPPER_CASE)', 'write PEAK']]),
    'macro in a circle': ('A = %B\nB = %A\ntrain.Improve.seed = %A', [['more.gin:', '%A', '-> %B', 'itself']]),
    'field of a part not built': (
        'learning.Adafactor.peak = 1e-3',
        [['more.gin:2:', 'no learning.Adafactor is built', 'this run builds learning.AdamW']],
    ),
    'scope nobody builds': (
        'stage_1/learning.AdamW.decay = 0.3',
        [['more.gin:2:', 'no learning.AdamW is built under stage_1/', 'it is built without a scope']],
    ),
    'scope misspelt': (
        'improve.Stage.optimizer = @stage/learning.AdamW()\nstagee/learning.AdamW.decay = 0.3',
        [['more.gin:3:', 'stagee/', 'did you mean stage/learning.AdamW.decay?']],
    ),
    'nested scopes': ('a/b/learning.AdamW.decay = 0.3', [['more.gin:2:', 'scopes are not nested: a/b/']]),
    'word for a number': ("learning.AdamW.decay = 'hot'", [['more.gin:2:', "wants float, not 'hot' (str)"]]),
    'quoted number': ("train.Improve.seed = '3'", [['more.gin:2:', "wants int, not '3' (str)", 'write 3 without']]),
    'float for int': ('train.Improve.seed = 3.0', [['more.gin:2:', 'wants int, not 3.0 (float)', 'write 3']]),
    'bool for int': ('train.Improve.seed = True', [['more.gin:2:', 'wants int, not True (bool)']]),
    'number for text': ('train.Improve.note = 3', [['more.gin:2:', 'wants str | None, not 3', "write '3' in quotes"]]),
    'int for bool': ('sampling.Sampler.check = 1', [['more.gin:2:', 'wants bool, not 1 (int)', 'write True']]),
    'no such option': (
        "sampling.Sampler.kind = 'greddy'",
        [['more.gin:2:', "wants 'ancestral' or 'greedy', not 'greddy'", "did you mean 'greedy'?"]],
    ),
    'one for a tuple': ("sampling.Sampler.stops = 'a'", [['more.gin:2:', 'wants tuple[str, ...]', 'write (value,)']]),
    'wrong length': ('learning.AdamW.betas = (1, 2, 3)', [['more.gin:2:', 'that is 2 values, here are 3']]),
    'wrong inside': ("learning.AdamW.betas = (1, 'x')", [['more.gin:2:', "value 2 is 'x' (str)"]]),
    'wrong part': (
        'improve.Stage.optimizer = @sampling.Sampler()',
        [['more.gin:2:', 'wants Optimizer, not @sampling.Sampler()', '@learning.AdamW(), @learning.Adafactor()']],
    ),
    'quoted part': (
        "improve.Stage.sampler = 'sampling.Sampler'",
        [['more.gin:2:', 'wants sampling.Sampler', 'write @sampling.Sampler() without quotes']],
    ),
    'out of range': (
        'learning.AdamW.peak = -1',
        [['more.gin:2:', 'refuses its values: peak must be above 0; it is -1']],
    ),
    'bound twice': ('PEAK = 1\nPEAK = 2', [['more.gin:3:', 'PEAK is bound twice', 'first at more.gin:2']]),
    'include below': ("PEAK = 1\ninclude 'part.gin'", [['more.gin:3:', 'an include stands after a binding', 'above']]),
    'no such file': ("include 'godo.gin'", [['more.gin:2:', 'no file godo.gin', 'did you mean good.gin?']]),
    'open bracket': (
        'learning.AdamW.betas = (1,\n  2\nPEAK = 2',
        [['more.gin:2:', 'bracket ( is never closed', 'learning.AdamW.betas = (1,']],
    ),
    'open bracket round parts': (
        'train.Improve.stages = (@a/improve.Stage(),\na/improve.Stage.steps = 3',
        [['more.gin:2:', 'bracket ( is never closed']],
    ),
    'open bracket at the end': ('learning.AdamW.betas = (1, [2', [['more.gin:2:', 'bracket [ is never closed']]),
    'word without quotes': ('train.Improve.note = hello', [['more.gin:2:', 'hello is not a value: text needs quotes']]),
    'path without quotes': ('train.Improve.note = /data', [['more.gin:2:', 'no value that gin can read', 'quotes']]),
    'arithmetic': ('train.Improve.seed = 1 + 2', [['more.gin:2:', 'there is no arithmetic']]),
    'no statement': ('hello', [['more.gin:2:', 'not a statement']]),
    'import': ('import numpy', [['more.gin:2:', 'a gin file imports nothing']]),
    'open text': ('train.Improve.note = """x', [['more.gin:', 'ends in the middle of a statement']]),
}


@pytest.mark.parametrize('kind', MISTAKES)
def test_mistake(folder, kind):
    text, expected = MISTAKES[kind]
    write(more='# more\n' + text + '\n', part='# nothing')
    found = wrong(files=('good.gin', 'more.gin'))
    assert len(found) == len(expected), found
    for problem, pieces in zip(found, expected, strict=True):
        assert [piece for piece in pieces if piece not in problem] == [], problem


def test_a_binding_that_is_always_overruled(folder):
    write(
        more="""
        improve.Stage.optimizer = @a/learning.AdamW()
        improve.Stage.steps = 1
        a/learning.AdamW.peak = 0.2
        learning.AdamW.peak = 0.3
    """
    )
    (found,) = wrong(root='improve.Stage', files=('more.gin',))
    assert found.startswith('more.gin:4: learning.AdamW.peak is read by nobody')
    assert 'has a value of its own: a/learning.AdamW.peak' in found


def test_missing_values_are_listed_together(folder):
    write(short='train.Improve.stages = (@improve.Stage(),)\nimprove.Stage.optimizer = @learning.AdamW()\n')
    found = '\n'.join(wrong(files=('short.gin',)))
    assert 'short.gin:1: improve.Stage.steps (int) must be bound: Updates in one round.' in found
    assert 'short.gin:2: learning.AdamW.peak (float) must be bound: highest learning rate' in found
    assert 'train.Improve.run_dir (str) must be bound: where everything is written' in found
    assert '--gin.train.Improve.run_dir=...' in found


def test_required_macros_show_their_comments(folder):
    write(spine='PEAK = %gin.REQUIRED  # highest learning rate\nRUN_DIR = %gin.REQUIRED  # where to write\n')
    write(more="include 'spine.gin'\ntrain.Improve.run_dir = %RUN_DIR\n")
    found = wrong(files=('good.gin', 'more.gin'))
    assert found[0].startswith('spine.gin:1: PEAK must be bound: highest learning rate')
    assert found[1].startswith('spine.gin:2: RUN_DIR must be bound: where to write')
    built = build('PEAK=1', 'RUN_DIR=/x', files=('good.gin', 'more.gin'))
    assert (built.value.run_dir, built.value.stages[0].optimizer.peak) == ('/x', 1.0)


def test_a_value_in_a_macro_is_shown_where_it_stands(folder):
    write(more="# more\nPEAK = 'hot'\n")
    (found,) = wrong(files=('good.gin', 'more.gin'))
    assert found.startswith("more.gin:2: learning.AdamW.peak wants float, not 'hot'")
    assert 'read at good.gin:9: learning.AdamW.peak = %PEAK' in found


def test_all_kinds_at_once_in_order_of_lines(folder):
    chosen = ['unknown part', 'unknown field', 'macro nobody reads', 'float for int', 'one for a tuple', 'open bracket']
    write(more='\n'.join(MISTAKES[kind][0] for kind in chosen))
    found = wrong('improve.Stage.steps=abc', files=('good.gin', 'more.gin'))
    assert len(found) == len(chosen) + 1
    assert (
        found[0].startswith('command line: improve.Stage.steps wants int')
        and '--gin.improve.Stage.steps=abc' in found[0]
    )
    for line, (kind, problem) in enumerate(zip(chosen, found[1:], strict=True), start=1):
        assert problem.startswith(f'more.gin:{line}:') and MISTAKES[kind][1][0][1] in problem, problem


def test_missing_file_shows_how_it_was_reached(folder):
    write(a="include 'b.gin'\n", b="# b\ninclude 'gone/c.gin'\n")
    found = wrong(files=('a.gin', 'good.gin'))
    assert found[0].startswith('b.gin:2: there is no file gone/c.gin') and 'a.gin:1 -> b.gin:2' in found[0]
    (found,) = wrong(files=('good.gin', 'godd.gin'))
    assert found.startswith('command line: there is no file godd.gin') and 'did you mean good.gin?' in found
    write(a="include 'gone.gin'\ntrain.Improve.seed = %SEED\nOTHER = 3\n")
    assert len(wrong(files=('a.gin',))) == 1  # what the file would have said is not missed
    write(a="include 'b.gin'\n", b="include 'a.gin'\n")
    assert 'a.gin includes itself' in wrong(files=('a.gin', 'good.gin'))[0]


def test_a_part_that_contains_itself(folder):
    write(nest='nest.Nest.inner = @nest.Nest()\n')
    (found,) = wrong(root='nest.Nest', files=('nest.gin',))
    assert found.startswith('nest.gin:1: a part contains itself: nest.Nest -> nest.Nest')


def test_unknown_root(folder):
    assert 'did you mean train.Improve?' in wrong(root='train.Imrpove')[0]
