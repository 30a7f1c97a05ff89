"""Slots: paths that wait, that end at other steps and move together are the paths drawn all at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import decoding
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.records import check
from t5x_selfimprove.sampling import slots
from t5x_selfimprove.sampling.adaptive import Adaptive
from t5x_selfimprove.sampling.sampler import Sampler, default_tail
from t5x_selfimprove.sampling.slots import Plan
from tests.consolidation.batches import Spelled
from tests.models import tiny_t5
from tests.models.tiny import VOCABULARY, close, model
from tests.sampling.tables import EOS, LETTERS, constant, prompts_of

WORDS = Spelled(tuple(b'' if token < 2 else bytes([64 + token]) for token in range(VOCABULARY)))
ASKED = [[2, 3, 4], [9, 8], [7, 7, 7, 7], [5, 2]]
PREFIX = [6, 3]


@functools.partial(jax.jit, static_argnums=0)
def run(sampler, tiny, prompts, limit=None):
    return sampler(decoding.for_sampling(tiny, sampler.weights), prompts, jax.random.key(3), limit=limit)


def sample(sampler, tiny, prompts, limit=None):
    samples = jax.tree.map(np.asarray, run(sampler, tiny, prompts, limit))
    check(samples)
    return samples


def same(got, wanted):
    """The same paths, token for token."""
    for name in ('tokens', 'mask', 'ended', 'drawn'):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), name)
    close(got.log_probs, wanted.log_probs)
    close(got.proposal_log_probs, wanted.proposal_log_probs)


ALL_AT_ONCE = Sampler(WORDS, samples=5, max_tokens=9, temperature=1.3, tail=())
WAYS = {
    'one at a time': {'slots': 1, 'period': 4},
    'seven, refilled at every step': {'slots': 7, 'period': 1},
    'eleven, with a tail': {'slots': 11, 'period': 3, 'tail': (0.6, 0.2)},
    'all, with a tail': {'tail': (0.5, 0.25, 0.1)},
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('kind', ['decoder', 'sliding decoder', 'encoder-decoder'])
def test_refilled_slots_draw_the_same_paths(kind, way):
    if kind == 'encoder-decoder' and way == 'one at a time':
        pytest.skip('three kinds times four ways: the decoders have this one')
    sliding = {'sliding_window': 3, 'attention_pattern': ('sliding', 'full')}
    tiny = tiny_t5.model() if kind == 'encoder-decoder' else model(**(sliding if 'sliding' in kind else {}))
    # Lengths from 1 to 9 whatever the model draws, so that slots are left at all times.
    limit = jnp.array(np.random.default_rng(0).integers(1, 10, 20), jnp.int32)
    asked = prompts_of(ASKED, prefix=PREFIX)
    wanted = sample(ALL_AT_ONCE, tiny, asked, limit)
    assert len(set(wanted.mask.sum(axis=1))) > 5
    got = sample(dataclasses.replace(ALL_AT_ONCE, **WAYS[way]), tiny, asked, limit)
    same(got, wanted)
    assert got.slot_steps < wanted.slot_steps


@pytest.mark.parametrize('way', ['seven, refilled at every step', 'all, with a tail'])
def test_refilled_slots_of_int8_draw_the_same_paths(way):
    """What a path leaves in the ring is rounded by itself, so that nothing hangs on its neighbours."""
    limit = jnp.array(np.random.default_rng(0).integers(1, 10, 20), jnp.int32)
    tiny, asked = model(), prompts_of(ASKED, prefix=PREFIX)
    wide, narrow = sample(ALL_AT_ONCE, tiny, asked, limit), dataclasses.replace(ALL_AT_ONCE, cache='int8')
    wanted = sample(narrow, tiny, asked, limit)
    assert np.abs(wanted.log_probs[:, :3] - wide.log_probs[:, :3]).max() > 1e-6
    same(sample(dataclasses.replace(narrow, **WAYS[way]), tiny, asked, limit), wanted)


def test_slots_of_several_devices_draw_the_same_paths():
    tiny, asked = model(), prompts_of(ASKED, prefix=PREFIX)
    wanted = sample(ALL_AT_ONCE, tiny, asked)
    for mesh in (MeshShape(data=2, tensor=2), MeshShape(data=2, fsdp=2)):
        count = 4
        with partitioning.use(mesh.build(jax.devices()[:count])):
            same(sample(dataclasses.replace(ALL_AT_ONCE, slots=8, period=2, tail=(0.5,)), tiny, asked), wanted)


def test_limits_cut_paths_off():
    got = sample(Sampler(LETTERS, 2, 6), constant([[0.0, -np.inf, 0.0, 0.0, 0.0]] * 7), prompts_of([[2], [3]]),
                 jnp.array([1, 6, 4, 2], jnp.int32))  # fmt: skip
    assert got.mask.sum(axis=1).tolist() == [1, 6, 4, 2] and not got.ended.any()


def test_few_slot_steps_go_to_paths_that_have_ended():
    """Lengths spread evenly over 16 to 256: below 10 % away from the tail, and the tail is short."""
    lengths = np.random.RandomState(1234).randint(16, 257, 1024).astype(np.int32)
    never = constant([[0.0, -np.inf, 0.0, 0.0, 0.0]])
    never = dataclasses.replace(never, table=jnp.broadcast_to(never.table, (5, 257, 5, 5)))
    sampler = Sampler(LETTERS, samples=64, max_tokens=256, slots=64, period=16, tail=(0.75, 0.5, 0.25, 0.125))
    half, all_of_them = (
        sample(sampler, never, prompts_of([[2]] * (count // 64)), jnp.array(lengths[:count])) for count in (512, 1024)
    )
    assert (all_of_them.mask.sum(axis=1) == lengths).all()
    assert lengths[:512].sum() / half.slot_steps > 0.88  # the tail of 64 of 512 paths included
    # Twice as many paths have the same tail: what is between them is away from it.
    assert lengths[512:].sum() / (all_of_them.slot_steps - half.slot_steps) > 0.9
    together = dataclasses.replace(sampler, slots=None, tail=())
    unrefilled = sample(together, never, prompts_of([[2]] * 8), jnp.array(lengths[:512]))
    assert lengths[:512].sum() / unrefilled.slot_steps < 0.55


# The plan.


def test_every_question_begins_before_any_has_two_paths():
    plan = Plan(parts=1, questions=3, samples=2, variants=1, sizes=(2,), period=1)
    assert plan.order.tolist() == [0, 2, 4, 1, 3, 5] and plan.refills and not plan.in_order


def test_samples_of_two_prompts_sit_with_their_own():
    plan = Plan(parts=1, questions=2, samples=3, variants=2, sizes=(6,), period=1)
    #                question 0: samples 0 1 2 read prompts 0 1 0; two lanes each; the last is of idle slots
    assert plan.lanes == 2 and plan.seat.tolist() == [0, 2, 1, 4, 6, 5, 0]
    seats = slots.seats_of(plan, jnp.array([5, 6, 0], jnp.int32))
    assert seats.seat.tolist() == [[5, 0, 0]] and seats.occupant[0, 5] == 0 and seats.occupant[0, 0] == 2


@pytest.mark.parametrize(
    ('paths', 'bytes_of_one', 'room', 'fit'),
    [(64, 10, 640, 64), (64, 10, 639, 56), (64, 10, 79, 7), (64, 10, 5, 1), (5, 10, 1000, 5)],
)
def test_slots_that_fit_the_memory(paths, bytes_of_one, room, fit):
    assert slots.slots_that_fit(paths, bytes_of_one, room) == fit


def test_sizes_fall():
    assert slots.sizes_of(64, (0.75, 0.5, 0.1)) == (64, 48, 32, 7)
    assert slots.sizes_of(2, (0.75, 0.5, 0.1)) == (2, 1)


def test_deep_models_move_less_often():
    assert [len(default_tail(layers, 128)) for layers in (0, 1, 8, 16, 24, 32, 48, 80)] == [0, 4, 4, 3, 1, 1, 0, 0]
    assert default_tail(8, 127) == ()


def test_memory_of_a_path_is_the_same_behind_a_long_prompt():
    """It grows with prefix + Q P + S C, never with S P: no keys and values of a prompt are repeated."""
    tiny = decoding.for_sampling(model(layers=1, head_size=64))
    of_token = 2 * tiny.config.kv_heads * 64 * 4  # bytes of its keys and values

    def of_paths(prefix, question):
        """Bytes that 56 paths more for each of two questions take."""
        asked, taken = prompts_of([[2] * question] * 2, prefix=[3] * prefix), []
        for samples in (8, 64):
            sampler = Sampler(WORDS, samples=samples, max_tokens=9, tail=())
            run = jax.jit(lambda tiny, context: sampler(tiny, asked, jax.random.key(0), context))  # noqa: B023
            context = jax.eval_shape(sampler.read_prefix, tiny, asked)
            taken.append(run.lower(tiny, context).compile().memory_analysis().temp_size_in_bytes)
        return taken[1] - taken[0]

    short, long = of_paths(8, 8), of_paths(520, 136)
    assert short > 2 * 56 * 9 * of_token
    assert long - short < 2 * 56 * (512 + 128) * of_token / 4  # the scores; with copies it would be four times as much


def test_slots_by_memory(monkeypatch):
    tiny, asked = model(), prompts_of(ASKED)
    one = decoding.bytes_of_own(tiny, 9)
    assert one == 2 * 2 * 2 * 4 * 9 * 4 + 4 + 4  # layers, keys and values, heads, size, columns, bytes; two counters
    # A byte a number, and a scale of four for each head and token.
    assert decoding.bytes_of_own(tiny, 9, 'int8') == 2 * 2 * 2 * 9 * (4 + 4) + 4 + 4
    monkeypatch.setattr(partitioning, 'memory_bytes', lambda: 8 * one * 4)
    assert ALL_AT_ONCE.plan(tiny, asked).sizes == (8,)


def test_batches_that_do_not_divide_are_refused():
    mesh = MeshShape(data=8).build()
    with partitioning.use(mesh), pytest.raises(ValueError, match=r'4 questions at a time .* into 8'):
        ALL_AT_ONCE.plan(model(), prompts_of(ASKED))
    mesh = MeshShape(data=4).build(jax.devices()[:4])
    with partitioning.use(mesh), pytest.raises(ValueError, match='slots = 3 are fewer'):
        dataclasses.replace(ALL_AT_ONCE, slots=3).plan(model(), prompts_of(ASKED))


# No more paths than a vote needs.


@dataclasses.dataclass(frozen=True)
class FirstToken:
    """The answer of a path is its first token, b (token 3) is none."""

    truncated_votes: bool = False

    def extract(self, tokens, mask, ended):
        return tokens[:, :1].astype(jnp.uint8), mask[:, 0] & (tokens[:, 0] != 3)


def answering(chances):
    """A table whose first token is drawn with the given chances of a, b, c; then text ends."""
    first = np.full(5, -np.inf)
    first[2:] = np.log(chances)
    return constant([first.tolist(), [-np.inf, 0.0, -np.inf, -np.inf, -np.inf], [0.0] * 5])


def winner(samples, count):
    """The answer with the most votes among the paths that were drawn, of each question."""
    votes = [np.bincount(row[drawn], minlength=5) for row, drawn in
             zip(samples.tokens[:, 0].reshape(-1, count), samples.drawn.reshape(-1, count), strict=True)]  # fmt: skip
    return [row.argmax() if (row == row.max()).sum() == 1 else None for row in np.array(votes) * [1, 1, 1, 0, 1]]


def test_settled_majorities_save_paths_and_are_the_same():
    asked, table = prompts_of([[2]] * 40), answering([0.85, 0.05, 0.1])
    full = Sampler(LETTERS, samples=16, max_tokens=3, slots=80, period=2, tail=())
    every, few = sample(full, table, asked), sample(
        dataclasses.replace(full, adaptive=Adaptive(FirstToken())), table, asked
    )
    assert every.drawn.all() and 0.55 < few.drawn.mean() < 0.8
    assert winner(few, 16) == winner(every, 16)
    np.testing.assert_array_equal(few.tokens[few.drawn], every.tokens[few.drawn])
    assert not few.mask[~few.drawn].any() and not few.ended[~few.drawn].any()
    confident = dataclasses.replace(full, adaptive=Adaptive(FirstToken(), confidence=0.95, least=3))
    fewer = sample(confident, table, asked)
    assert fewer.drawn.mean() < few.drawn.mean() and fewer.drawn.reshape(40, 16).sum(axis=1).min() >= 3
    agree = np.mean([a == b for a, b in zip(winner(fewer, 16), winner(every, 16), strict=True)])
    assert agree > 0.9


@pytest.mark.parametrize(
    ('answers', 'settled'),
    [
        ([2, 2, 2, 0, 0], True),  # 3 of 5: the two that are not finished cannot change it
        ([2, 2, 0, 0, 0], False),
        ([2, 2, 4, 2, 0], True),  # 3 : 1 and one to come
        ([2, 2, 4, 0, 0], False),
        ([3, 3, 3, 3, 2], True),  # 1 : 0, and all are finished
        ([2, 2, 4, 4, 3], False),  # a tie
    ],
)
def test_settled_by_the_count(answers, settled):
    plan = Plan(parts=1, questions=1, samples=5, variants=1, sizes=(5,), period=1)
    own = dataclasses.make_dataclass('Own', [])()
    paths = slots.start(plan, 3, 0, own).paths
    answers = np.array(answers)
    paths = dataclasses.replace(paths, tokens=paths.tokens.at[:, 0].set(answers), count=jnp.asarray(answers > 0) * 2)
    assert Adaptive(FirstToken(truncated_votes=True)).settled(plan, paths).tolist() == [settled]
    assert Adaptive(FirstToken()).settled(plan, paths).tolist() == [False]  # they were cut off: none counts
    paths = dataclasses.replace(paths, ended=jnp.asarray(answers > 0))
    assert Adaptive(FirstToken()).settled(plan, paths).tolist() == [settled]
    assert Adaptive(FirstToken(), confidence=0.8, least=2).settled(plan, paths).tolist() == [
        settled or answers.tolist() == [2, 2, 0, 0, 0]
    ]


def test_adaptive_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r'between 0\.5 and 1; it is 0\.4'):
        Adaptive(FirstToken(), confidence=0.4)
    with pytest.raises(ValueError, match='at least 1; it is 0'):
        Adaptive(FirstToken(), least=0)


def test_ends_of_text():
    class Two(Spelled):
        @property
        def eos_ids(self):
            return (EOS, 4)

    sampler = Sampler(Two(LETTERS.spellings), samples=200, max_tokens=9)
    got = sample(sampler, constant([[0.0] * 5] * 9), prompts_of([[2]]))
    last = got.tokens[np.arange(200), got.mask.sum(axis=1) - 1]
    assert set(last[got.ended].tolist()) == {EOS, 4}
    assert not np.isin(got.tokens[:, :-1][got.mask[:, 1:]], [EOS, 4]).any()  # nothing follows either of them
