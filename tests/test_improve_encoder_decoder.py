"""A round of an encoder-decoder on the embedded task: traced once, in place, the same on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import improve, metrics, partitioning
from t5x_selfimprove.consolidation.unvoted import Unvoted
from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.items import encode_examples, encode_questions
from t5x_selfimprove.improve import Recipe, new_state, one_round
from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.learning.optimizers import AdamW, Schedule
from t5x_selfimprove.learning.supervised import Supervised
from t5x_selfimprove.models import parameters
from t5x_selfimprove.partitioning import LEARNING, Axes, MeshShape
from t5x_selfimprove.records import Prompts, Sources, check
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.templates import Template
from tests.consolidation.batches import Initials
from tests.models import tiny_t5
from tests.models.tiny import close, host_calls, largest_difference

TEXT = 'Q: {question} A:'  # with text before the question, which the encoder reads with each of them
VOCABULARY = possessions.vocabulary(max_total=12, texts=(TEXT,))
BANK = possessions.Possessions(split='unlabelled', min_steps=2, max_steps=2, max_amount=6, max_total=12)
BATCHES, QUESTIONS, SAMPLES, ROOM = 2, 8, 4, 20


@functools.cache
def recipe() -> Recipe:
    """A small recipe that keeps paths with or without an answer: a random model has none."""
    # Epsilon is large so that rounding is not blown up where gradients are tiny.
    optimizer = AdamW(Schedule(peak=1e-2, warmup=1), epsilon=1e-3)
    return Recipe(
        prompt=Template(VOCABULARY, TEXT),
        sampler=Sampler(VOCABULARY, samples=SAMPLES, max_tokens=10),
        consolidator=Unvoted(Initials(VOCABULARY), max_kept=2),
        learner=Supervised(
            Packing(24, source_length=26), optimizer=optimizer, steps=3, batch_rows=8, replay_share=0.25
        ),
    )


@functools.cache
def questions(position: int = 0) -> improve.Questions:
    """[G, Q] questions without labels."""
    items = BANK.take(position, BATCHES * QUESTIONS)
    batch, _ = encode_questions(items, VOCABULARY, ROOM)
    return jax.tree.map(lambda x: x.reshape(BATCHES, QUESTIONS, *x.shape[1:]), batch)


@functools.cache
def replay() -> improve.Lessons:
    prompt, packing = recipe().prompt, Packing(48, source_length=26)
    items = dataclasses.replace(BANK, split='labelled').take(0, 8)
    examples, _ = encode_examples(items, VOCABULARY, prompt.before, prompt.after, 70, rooms=packing.rooms)
    lessons = packing(jax.tree.map(jnp.asarray, examples), jax.random.key(0))[0]
    # Completions that are labelled are longer than the paths here; their ends are cut, for rows of one width.
    cut = {name: getattr(lessons, name)[:, :24] for name in ('tokens', 'targets', 'loss_weight', 'segment', 'position')}
    return dataclasses.replace(lessons, **cut)


def start() -> improve.TrainState:
    rows = -(-VOCABULARY.size // 8) * 8
    tiny = tiny_t5.model(VOCABULARY.size, heads=4, head_size=4, embedding_rows=rows, vocabulary_chunk=512)
    return jax.tree.map(jnp.copy, new_state(tiny, recipe().learner, 0, keep_base=False))  # its own, to be donated


TRACES = []


def counted(state, questions, replay, *, recipe):
    """`one_round`, and a note that it was traced."""
    TRACES.append(recipe)
    return one_round(state, questions, replay, recipe=recipe)


@functools.cache
def compiled() -> jax.stages.Compiled:
    program = jax.jit(counted, static_argnames='recipe', donate_argnums=0)
    return program.lower(start(), questions(), replay(), recipe=recipe()).compile()


@functools.cache
def played() -> tuple:
    """(state, [round, round]) of two calls on fresh questions, as NumPy arrays."""
    state, left = start(), []
    for number in range(2):
        state, done = compiled()(state, questions(16 * number), replay())
        left.append(jax.tree.map(np.asarray, done))
    return jax.tree.map(np.asarray, state), left


def tokens(done: improve.Round) -> np.ndarray:
    """What was sampled, padding out of the way."""
    return np.where(done.samples.mask, done.samples.tokens, -1)


def test_a_round_samples_and_learns_in_place_and_is_traced_once():
    state, left = played()
    for done in left:
        check(done.samples)
        check(done.verdict)
        got = metrics.values(done.metrics)
        assert got['questions'] == 16 and got['samples'] == 64 and got['dropped_examples'] == 0
        assert np.isfinite(got['loss']) and got['training_tokens'] > 3 * 8 * (8 + 12)  # prompts are counted
        assert got['kept_paths'] == 32 and 0 < got['log_prob_drift'] < 1e-4
    assert (int(state.round), int(state.step)) == (2, 6)
    assert largest_difference(state.model, start().model) > 1e-2
    assert len(TRACES) == 1 and not host_calls(compiled())
    model = start()
    assert compiled().memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(model.model))
    compiled()(model, questions(), replay())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(model.model))


def prompts() -> Prompts:
    return jax.jit(recipe().prompt)(jax.tree.map(lambda x: x[0], questions()))


@functools.cache
def drawn() -> tuple:
    """(model, samples) of the first batch."""
    tiny = start().model
    return tiny, jax.jit(recipe().sampler)(tiny, prompts(), jax.random.key(3))


def test_the_sampler_says_the_log_probabilities_that_learning_sees():
    tiny, samples = drawn()
    asked = prompts()
    assert asked.prefix.shape[0] > 0
    whole = jnp.concatenate([jnp.broadcast_to(asked.prefix, (QUESTIONS, asked.prefix.shape[0])), asked.tokens], axis=1)
    inside = jnp.arange(whole.shape[1]) < asked.length[:, None] + asked.prefix.shape[0]
    source = Sources(*(jnp.repeat(array.astype(jnp.int32), SAMPLES, axis=0) for array in (whole, inside)))
    read = jnp.pad(samples.tokens, ((0, 0), (1, 0)))[:, :-1]
    place = jnp.broadcast_to(jnp.arange(read.shape[1]), read.shape)
    hidden = tiny.forward(read, place, samples.mask.astype(jnp.int32), source=source)
    got = jnp.where(samples.mask, tiny.log_probs(hidden, samples.tokens), 0)
    close(samples.log_probs, got, 1e-5)
    assert samples.mask.mean() > 0 and float(samples.log_probs.min()) < -1


def test_a_question_gets_the_same_paths_in_any_batch():
    tiny, samples = drawn()
    asked, turn = prompts(), np.array([5, 2, 7])
    some = dataclasses.replace(asked, tokens=asked.tokens[turn], length=asked.length[turn], id=asked.id[turn])
    again = jax.jit(recipe().sampler)(tiny, some, jax.random.key(3))
    of = lambda samples: np.asarray(samples.tokens).reshape(-1, SAMPLES, samples.tokens.shape[1])  # noqa: E731
    np.testing.assert_array_equal(of(again), of(samples)[turn])


MESHES = [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 2, 'tensor': 2, 'sequence': 2}]


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_eight_devices_equal_one(sizes):
    mesh = MeshShape(**sizes).build()
    split = jax.NamedSharding(mesh, partitioning.spec_of(Axes((None, 'batch')), LEARNING))
    state = start()
    state = jax.device_put(state, parameters.shardings(state, mesh, LEARNING))
    rows = jax.device_put(replay(), jax.NamedSharding(mesh, jax.P()))
    with partitioning.use(mesh):
        batch = jax.device_put(questions(), split)
        state, done = jax.jit(one_round, static_argnames='recipe', donate_argnums=0)(
            state, batch, rows, recipe=recipe()
        )
    wanted_state, wanted = compiled()(start(), questions(), replay())
    np.testing.assert_array_equal(tokens(jax.tree.map(np.asarray, done)), tokens(jax.tree.map(np.asarray, wanted)))
    assert largest_difference(done.verdict, wanted.verdict) == 0
    assert largest_difference(done.metrics, wanted.metrics) < 1e-3
    assert largest_difference(state.model, wanted_state.model) < 1e-5
