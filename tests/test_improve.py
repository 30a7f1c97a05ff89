"""A round as one program: traced once, in place, the same on every mesh, blind to labels."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import improve, metrics, partitioning
from t5x_selfimprove.consolidation.answers import AnswerFormat
from t5x_selfimprove.consolidation.vote import MajorityVote
from t5x_selfimprove.data.items import encode_examples, encode_questions, make_item
from t5x_selfimprove.improve import Recipe, new_state, one_round, rounds
from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.learning.optimizers import AdamW, Schedule
from t5x_selfimprove.learning.supervised import Supervised
from t5x_selfimprove.models import parameters
from t5x_selfimprove.partitioning import LEARNING, Axes, MeshShape
from t5x_selfimprove.records import check
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template
from t5x_selfimprove.vocabulary import WordVocabulary
from tests.consolidation.batches import Initials
from tests.models.tiny import host_calls, largest_difference, model
from tests.sampling.tables import Table

DIGITS = 5
VOCABULARY = WordVocabulary((*map(str, range(DIGITS)), *(f' {n}' for n in range(DIGITS)), ' +', ' =', ' is'))
SIZE = 16
BATCHES, QUESTIONS, SAMPLES, ROUNDS = 2, 8, 4, 4


def recipe(**learner) -> Recipe:
    """A small recipe, made anew at every call. A random model answers now and then: the trigger is one word."""
    template = Template(VOCABULARY, '{question} =')
    # Epsilon is large so that rounding is not blown up where gradients are tiny.
    optimizer = AdamW(Schedule(peak=1e-2, warmup=1), epsilon=1e-3)
    settings = {'optimizer': optimizer, 'steps': 3, 'batch_rows': 8, 'replay_share': 0.25, **learner}
    answers = AnswerFormat(VOCABULARY, trigger='is', room=4, window=8)
    return Recipe(
        prompt=template,
        sampler=Sampler(VOCABULARY, samples=SAMPLES, max_tokens=10, slots=16, period=3),  # the rest waits
        consolidator=MajorityVote(answers, max_kept=2),
        learner=Supervised(Packing(24), **settings),
    )


def items(first: int, count: int) -> list:
    sums = [(n // DIGITS % DIGITS, n % DIGITS, n // DIGITS**2) for n in range(first, first + count)]
    return [make_item(f'{a} + {b} + {c}', None, str((a + b + c) % DIGITS)) for a, b, c in sums]


def questions(first: int = 0) -> improve.Questions:
    """[G, Q] questions with labels."""
    batch, _ = encode_questions(items(first, BATCHES * QUESTIONS), VOCABULARY, 6, recipe().consolidator.answers)
    return jax.tree.map(lambda x: x.reshape(BATCHES, QUESTIONS, *x.shape[1:]), batch)


def replay() -> improve.Lessons:
    template = recipe().prompt
    around = (template.before, template.after)
    examples, _ = encode_examples(items(100, 8), VOCABULARY, *around, 12, answer_text=' is {answer}')
    return Packing(24)(jax.tree.map(jnp.asarray, examples), jax.random.key(0))[0]


def start(seed: int = 0, keep_base: bool = False) -> improve.TrainState:
    tiny = model(SIZE, kv_heads=4, head_size=4, vocabulary_chunk=64)
    return jax.tree.map(jnp.copy, new_state(tiny, recipe().learner, seed, keep_base))  # its own, to be donated


TRACES = []


def counted(state, questions, replay, *, recipe):
    """`one_round`, and a note that it was traced."""
    TRACES.append(recipe)
    return one_round(state, questions, replay, recipe=recipe)


program = jax.jit(counted, static_argnames='recipe', donate_argnums=0)


@functools.cache
def compiled() -> jax.stages.Compiled:
    return program.lower(start(), questions(), replay(), recipe=recipe()).compile()


@functools.cache
def played(seed: int = 0) -> tuple:
    """(state, [round, ...]) of ROUNDS calls on fresh questions, as NumPy arrays."""
    state, left = start(seed), []
    for number in range(ROUNDS):
        state, done = compiled()(state, questions(16 * number), replay())
        left.append(jax.tree.map(np.asarray, done))
    return jax.tree.map(np.asarray, state), left


def tokens(done: improve.Round) -> np.ndarray:
    """What was sampled, padding out of the way."""
    return np.where(done.samples.mask, done.samples.tokens, -1)


def test_a_round_samples_votes_and_learns():
    state, left = played()
    for number, done in enumerate(left):
        check(done.samples)
        check(done.verdict)
        got = metrics.values(done.metrics)
        assert got['questions'] == 16 and got['samples'] == 64
        assert 2 <= got['kept_paths'] == (done.verdict.keep > 0).sum() <= 32, number
        assert got['sampled_tokens'] == done.samples.mask.sum()
        assert got['filled_rows'] > 0 and got['dropped_examples'] == 0
        assert np.isfinite(got['loss']) and got['training_tokens'] > 0
    assert (int(state.round), int(state.step)) == (ROUNDS, 3 * ROUNDS)
    assert largest_difference(state.model, start().model) > 1e-2
    assert not (tokens(left[0]) == tokens(left[1])).all()


def test_what_samples_is_what_learns():
    """To rounding; and where the samples are not the model's, the drift is seen."""
    _, left = played()
    assert all(0 < metrics.values(done.metrics)['log_prob_drift'] < 1e-5 for done in left)
    some = jax.tree.map(lambda array: jnp.asarray(array[0]), left[0].samples)
    first = jax.tree.map(lambda array: jnp.asarray(array[0]), questions())
    prompts, tiny = recipe().prompt(first), start().model
    measure = lambda samples: improve.log_prob_drift(tiny, prompts, samples, 4, 0)['log_prob_drift'].value  # noqa: E731
    assert measure(some) < 1e-5
    for path, wanted in ((3, 0.5), (4, 0.0)):  # four paths are looked at
        apart = measure(dataclasses.replace(some, log_probs=some.log_probs.at[path, 0].add(0.5)))
        assert abs(apart - wanted) < 1e-4
    other = measure(dataclasses.replace(some, tokens=some.tokens.at[0, 0].set((some.tokens[0, 0] + 1) % SIZE)))
    assert other > 1e-3


def test_one_trace_serves_all_rounds_and_equal_recipes():
    before, state = len(TRACES), start()
    for number in range(3):
        state, done = program(state, questions(16 * number), replay(), recipe=recipe())
        np.testing.assert_array_equal(tokens(done), tokens(played()[1][number]))
    # The first `compiled` may have traced it already: both go through one cache.
    assert len(TRACES) - before <= 1 and len(TRACES) >= 1
    assert all(each == recipe() and hash(each) == hash(recipe()) for each in TRACES)
    assert program._cache_size() == 1


@pytest.mark.parametrize('change', ['prompt', 'sampler', 'consolidator', 'learner'])
def test_another_recipe_is_another_value(change):
    mine = recipe()
    part = {
        'prompt': Template(VOCABULARY, '{question} + 0 ='),
        'sampler': dataclasses.replace(mine.sampler, temperature=0.9),
        'consolidator': dataclasses.replace(mine.consolidator, min_share=0.5),
        'learner': dataclasses.replace(mine.learner, steps=4),
    }[change]
    assert dataclasses.replace(mine, **{change: part}) != mine


def test_a_round_takes_the_place_of_the_state():
    state = start()
    # An optimizer that starts anew is no input of a round alone; `rounds` carries it in place.
    assert compiled().memory_analysis().alias_size_in_bytes >= nbytes(state.model)
    compiled()(state, questions(), replay())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.model))


def nbytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_a_scan_of_rounds_equals_the_calls_in_place_without_the_host():
    several = jax.tree.map(lambda *x: np.stack(x), *[questions(16 * number) for number in range(ROUNDS)])
    run = jax.jit(rounds, static_argnames='recipe', donate_argnums=0)
    run = run.lower(start(), several, replay(), recipe=recipe()).compile()
    assert not host_calls(run)
    held = nbytes((start().model, start().optimizer))
    assert run.memory_analysis().alias_size_in_bytes >= held >= 3 * nbytes(start().model)
    state, left = run(start(), several, replay())
    wanted, one_by_one = played()
    for number, done in enumerate(one_by_one):
        here = jax.tree.map(lambda x, number=number: np.asarray(x[number]), left)
        np.testing.assert_array_equal(tokens(here), tokens(done))
        assert largest_difference(here.metrics, done.metrics) < 1e-4
    assert largest_difference(state.model, wanted.model) < 1e-6
    assert (int(state.round), int(state.step)) == (int(wanted.round), int(wanted.step))


def test_labels_are_not_read():
    told = questions()
    wrong = np.where(told.answer > 0, ord('0') + (told.answer - ord('0') + 1) % DIGITS, 0).astype(np.uint8)
    wanted = compiled()(start(), told, replay())
    assert told.known.all() and (wrong != told.answer).any(axis=-1).all()
    for answer, known in ((wrong, told.known), (0 * wrong, np.zeros_like(told.known))):
        got = compiled()(start(), dataclasses.replace(told, answer=answer, known=known), replay())
        assert largest_difference(got, wanted) == 0


def test_seed_and_round_number_make_the_draws():
    def drawn(**fields):
        state = dataclasses.replace(start(), **{name: np.asarray(value) for name, value in fields.items()})
        return tokens(jax.tree.map(np.asarray, compiled()(state, questions(), replay())[1]))

    wanted = drawn()
    np.testing.assert_array_equal(drawn(step=np.int32(7)), wanted)
    assert (drawn(seed=np.uint32(1)) != wanted).mean() > 0.3
    assert (drawn(round=np.int32(1)) != wanted).mean() > 0.3


def test_the_order_of_questions_and_padding_do_not_matter():
    asked = questions()
    wanted = tokens(played()[1][0]).reshape(BATCHES, QUESTIONS, SAMPLES, -1)
    turned = compiled()(start(), jax.tree.map(lambda x: x[::-1, ::-1], asked), replay())[1]
    np.testing.assert_array_equal(tokens(turned).reshape(wanted.shape)[::-1, ::-1], wanted)

    asked.weight[1, 3:] = 0
    padded = jax.tree.map(np.asarray, compiled()(start(), asked, replay())[1])
    here = lambda x: x.reshape(BATCHES, QUESTIONS, SAMPLES, *x.shape[2:])  # noqa: E731
    np.testing.assert_array_equal(here(tokens(padded))[0], wanted[0])
    assert not here(padded.verdict.keep)[1, 3:].any() and here(padded.verdict.keep)[1, :3].any()
    assert metrics.values(padded.metrics)['questions'] == 8 + 3
    np.testing.assert_array_equal(here(padded.verdict.keep)[0], here(played()[1][0].verdict.keep)[0])


def on_mesh(sizes: tuple[int, ...]) -> tuple:
    """Two rounds on a mesh, as a run does them: state created split, one executable."""
    mesh = MeshShape(*sizes).build(jax.devices()[: math.prod(sizes)])
    split = lambda outer: jax.NamedSharding(  # noqa: E731
        mesh, partitioning.spec_of(Axes((None,) * outer + ('batch',)), LEARNING)
    )
    state = start()
    state = jax.device_put(state, parameters.shardings(state, mesh, LEARNING))
    rows = jax.device_put(replay(), jax.NamedSharding(mesh, jax.P()))
    with partitioning.use(mesh):
        batches = [jax.device_put(questions(16 * number), split(1)) for number in range(2)]
        step = jax.jit(one_round, static_argnames='recipe', donate_argnums=0)
        step = step.lower(state, batches[0], rows, recipe=recipe()).compile()
        left = []
        for batch in batches:
            state, done = step(state, batch, rows)  # refused, were the state to come back split in another way
            left.append(jax.tree.map(np.asarray, done))
    return state, left


# data, fsdp, tensor, expert, sequence: of eight devices each axis as large as four heads allow, and together.
MESHES = [(8, 1, 1), (1, 8, 1), (2, 1, 4), (1, 2, 4), (2, 2, 2), (1, 2, 2, 1, 2)]


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_every_mesh_equals_one_device(sizes):
    state, left = on_mesh(sizes)
    alone = start()
    for number, done in enumerate(left):
        alone, wanted = compiled()(alone, questions(16 * number), replay())
        np.testing.assert_array_equal(tokens(done), tokens(jax.tree.map(np.asarray, wanted)))
        assert largest_difference(done.verdict, wanted.verdict) == 0
        assert largest_difference(done.metrics, wanted.metrics) < 1e-3
    assert largest_difference(state.model, alone.model) < 1e-5
    parts = sizes[1] * sizes[2]
    assert state.model.embedding[...].addressable_shards[0].data.size * parts == SIZE * 16


@dataclasses.dataclass(frozen=True)
class Echo:
    """A learner that learns nothing and hands over what it was given."""

    def init(self, model):
        return None

    def __call__(self, state, examples, replay, key):
        return dataclasses.replace(state, optimizer=(examples, replay)), {}


def test_lessons_follow_a_prompt_of_their_own():
    mine = dataclasses.replace(
        recipe(),
        learner=Echo(),
        prompt=Template(VOCABULARY, '0 + 0 ={question} ='),
        consolidator=MajorityVote(Initials(VOCABULARY, room=4)),
        lesson_prompt=Template(VOCABULARY),
        drift_paths=0,  # a table does not learn
    )
    table = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 10, SIZE, SIZE)), jnp.float32)
    state = dataclasses.replace(start(), model=Table(table), optimizer=None)
    after, done = jax.jit(one_round, static_argnames='recipe')(state, questions(), None, recipe=mine)
    examples, none = after.optimizer
    assert none is None
    check(examples)
    asked = questions()
    assert examples.weight.shape == (BATCHES * QUESTIONS * SAMPLES,)
    np.testing.assert_array_equal(examples.weight, done.verdict.keep.ravel())
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), done.samples)
    for sample in (0, 5, 40, 63):
        question = asked.tokens.reshape(16, -1)[sample // SAMPLES, :5].tolist()
        wanted = [VOCABULARY.bos_id, *question, *flat.tokens[sample][flat.mask[sample]].tolist()]
        assert examples.tokens[sample, : len(wanted)].tolist() == wanted
        assert (int(examples.prompt_length[sample]), int(examples.length[sample])) == (6, len(wanted))


def test_a_base_is_kept_where_asked_and_is_a_copy():
    state = new_state(start().model, recipe().learner, 3, keep_base=True)
    assert largest_difference(state.base, state.model) == 0
    assert all(a is not b for a, b in zip(jax.tree.leaves(state.base), jax.tree.leaves(state.model), strict=True))
    assert (int(state.seed), int(state.step), int(state.round)) == (3, 0, 0)
    check(state)
    assert new_state(start().model, recipe().learner, 2**32 - 1, keep_base=False).base is None
