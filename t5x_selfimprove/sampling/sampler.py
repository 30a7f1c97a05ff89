"""The sampler: the prefix is read once, each question once; their N paths share it, and one loop draws them all."""

import dataclasses
import itertools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import decoding
from t5x_selfimprove.models.cache import by_part, check_kind
from t5x_selfimprove.partitioning import constrain
from t5x_selfimprove.records import Prompts, Samples
from t5x_selfimprove.sampling import slots, stops
from t5x_selfimprove.sampling.adaptive import Adaptive
from t5x_selfimprove.sampling.slots import Loop, Plan, Slots
from t5x_selfimprove.sampling.transforms import Drawn, Transform, draw, likeliest, log_sum_exp
from t5x_selfimprove.vocabulary import Vocabulary

# Shares of the slots that the last paths move to, by how many times they move.
TAILS = ((), (0.5,), (0.6, 0.3), (0.75, 0.5, 0.25), (0.75, 0.5, 0.25, 0.125))
LONG = 128  # tokens of a path, from which on moving pays
LAYERS_COMPILED = 64  # one by one, in all loops together


class LanguageModel(Protocol):
    """What the sampler asks of a model. Hidden states, contexts and rings are the model's own affair."""

    def read_prefix(self, tokens):
        """The context made of text [X] that all prompts begin with."""

    def prefill(self, tokens, length, context=()):
        """(hidden [B, D], context): reads prompts after a shared context; the state that the first token is drawn
        from, and the context of the tokens to come."""

    def new_own(self, rows, room, kind):
        """An empty ring of a kind for the tokens of `rows` samples, with the face of `models.cache.Own`."""

    def extend(self, tokens, context, own, seats=None):
        """(hidden [S, D], own): reads one more token of every sample."""

    def logits(self, hidden):
        """Logits from hidden states."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws N paths of every question from a model that stays as it is.

    Every draw's key is folded from (key, question id, sample number, position): a question gets the same paths in
    whatever batch, order, slot or mesh it is asked.

    A path ends with one of the vocabulary's ends of text, which is its last token; with one of the texts in `stop`,
    which are found across tokens and cut off, but for a token that begins before the text; or at `max_tokens`, cut off.

    Raises:
      ValueError: a field out of range.
    """

    vocabulary: Vocabulary
    samples: int = 16  # N
    max_tokens: int = 32  # C, end-of-text included
    temperature: float = 1.0  # 0 = greedy
    transforms: tuple[Transform, ...] = ()  # applied in order after the temperature
    min_tokens: int = 0  # before which no end of text is drawn; texts in `stop` end a path all the same
    stop: tuple[str, ...] = ()
    slots: int | None = None  # paths drawn at the same time; None: as many as fit, see `cache_share`
    cache_share: float = 0.25  # of the memory of the devices that the keys and values of all slots may take by default
    period: int = 16  # steps between refills of the slots
    tail: tuple[float, ...] | None = None  # shares of the slots that the last paths move to; None: `default_tail`
    adaptive: Adaptive | None = None  # no more paths than a vote needs
    weights: str = 'as trained'  # or 'int8' (models/decoding.py)
    cache: str = 'as computed'  # or 'int8': keys and values of the tokens drawn (models/cache.py)

    def __post_init__(self):
        if self.samples < 1 or self.max_tokens < 1:
            raise ValueError(f'samples and max_tokens must be at least 1; they are {self.samples}, {self.max_tokens}')
        if not self.temperature >= 0:
            raise ValueError(f'temperature must be 0 (greedy) or positive; it is {self.temperature}')
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f'min_tokens = {self.min_tokens} must lie in 0 .. max_tokens = {self.max_tokens}')
        if (self.slots is not None and self.slots < 1) or self.period < 1:
            raise ValueError(f'slots and period must be at least 1; they are {self.slots}, {self.period}')
        if not 0 < self.cache_share < 1:
            raise ValueError(f'cache_share must lie between 0 and 1; it is {self.cache_share}')
        if any(not 0 < after < before for before, after in itertools.pairwise((1.0, *(self.tail or ())))):
            raise ValueError(f'tail must be falling shares between 1 and 0; it is {self.tail}')
        if '' in self.stop:
            raise ValueError('stop holds an empty text, which would end every path before it begins; leave it out')
        bad = [token for token in self.ends if not 0 <= token < self.vocabulary.size]
        if bad:
            raise ValueError(f'ends of text {bad} are outside this vocabulary of {self.vocabulary.size} tokens')
        decoding.check_weights(self.weights)
        check_kind(self.cache)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a path."""
        return tuple(self.vocabulary.eos_ids)

    def __call__(
        self,
        model: LanguageModel,
        prompts: Prompts,
        key: jax.Array,
        prefix: Any = None,
        limit: Int32[Array, 'S'] | None = None,
    ) -> Samples:
        """Samples Q * N paths, question-major.

        Args:
          model: the frozen model, as `models.decoding.for_sampling` makes it.
          prompts: Q questions.
          key: the round's key.
          prefix: what `read_prefix` returns for these prompts, where it has been read already.
          limit: most tokens of each path; None: `max_tokens`.
        """
        prefix = self.read_prefix(model, prompts) if prefix is None else prefix
        hidden, context = model.prefill(prompts.tokens, prompts.length, *prefix)
        plan = self.plan(model, prompts)
        own = model.new_own(plan.parts * plan.sizes[0], self.max_tokens, self.cache)
        loop = constrain_rows(slots.start(plan, self.max_tokens, self.vocabulary.pad_id, own))
        most = jnp.full(prompts.id.shape[0] * self.samples, self.max_tokens) if limit is None else limit
        drawing = _Drawing(self, plan, model, context, hidden, sample_keys(key, prompts.id, self.samples), most)
        loop = drawing.all_paths(loop)
        samples = constrain(self.finished(loop), 'tokens')
        return dataclasses.replace(samples, slot_steps=loop.slots.room)

    def read_prefix(self, model: LanguageModel, prompts: Prompts) -> tuple[Any, ...]:
        """What `__call__` takes as `prefix`: the context of the text before all prompts, once for many batches."""
        return (model.read_prefix(prompts.prefix),) if prompts.prefix.shape[0] else ()

    def plan(self, model: LanguageModel, prompts: Prompts) -> Plan:
        """How the paths of a batch are shared out to slots.

        Raises:
          ValueError: the questions of a batch do not divide by the parts it is split into, or there are fewer slots
            than parts.
        """
        mesh = jax.sharding.get_abstract_mesh()
        parts = 1 if mesh.empty else partitioning.path_parts(mesh)
        questions, variants = prompts.id.shape[0], prompts.tokens.shape[0] // prompts.id.shape[0]
        if questions % parts:
            raise ValueError(
                f'{questions} questions at a time cannot be split into {parts} equal parts over the mesh '
                f'{dict(mesh.shape)}; ask a multiple of {parts}, or choose a mesh with fewer parts'
            )
        paths = questions // parts * self.samples
        if self.slots is None:
            room = int(self.cache_share * partitioning.memory_bytes())
            size = slots.slots_that_fit(paths, decoding.bytes_of_own(model, self.max_tokens, self.cache), room)
        else:
            size = min(paths, self.slots // parts)
            if not size:
                raise ValueError(f'slots = {self.slots} are fewer than the {parts} parts that a batch is split into')
        tail = default_tail(decoding.layers_apart(model), self.max_tokens) if self.tail is None else self.tail
        sizes = slots.sizes_of(size, tail)
        return Plan(parts, questions // parts, self.samples, variants, sizes, self.period)

    def finished(self, loop: Loop) -> Samples:
        """The paths as samples, question-major."""
        paths = loop.paths
        mask = jnp.arange(self.max_tokens) < paths.count[:, None]
        if self.stop:
            mask = stops.kept(self.vocabulary, self.stop, paths.tokens, mask)
        inside = lambda array, filling: jnp.where(mask, array, filling)  # noqa: E731
        return Samples(
            tokens=inside(paths.tokens, self.vocabulary.pad_id),
            mask=mask,
            log_probs=inside(paths.log_probs, 0.0),
            ended=paths.ended,
            proposal_log_probs=inside(paths.proposal_log_probs, 0.0),
            drawn=paths.count > 0,
        )

    def choose(
        self, logits: Float32[Array, 'S V'], drawn: Drawn, keys: jax.Array
    ) -> tuple[Int32[Array, 'S'], Float32[Array, 'S'], Float32[Array, 'S']]:
        """The next token of every sample.

        Rows of an embedding beyond the vocabulary stand for no token: they keep their share of the distribution, in
        `log_probs` here as in learning, and are never drawn.

        Returns:
          The tokens, their log-probabilities in the model's distribution, and in the one they were drawn from.
        """
        size, able = self.vocabulary.size, logits
        if logits.shape[-1] > size:
            able = jnp.where(jnp.arange(logits.shape[-1]) < size, able, -jnp.inf)
        if self.min_tokens:
            ends = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(self.ends, jnp.int32))
            able = jnp.where(ends & (drawn.count < self.min_tokens)[:, None], -jnp.inf, able)
        if self.temperature:
            able = able / self.temperature
        for transform in self.transforms:
            able = transform(able, drawn)
        at = lambda array, token: jnp.take_along_axis(array, token[:, None], axis=-1)[:, 0]  # noqa: E731
        if self.temperature == 0:
            token = likeliest(able)
            proposal = jnp.zeros(token.shape, jnp.float32)
        else:
            here = jax.vmap(jax.random.fold_in)(keys, drawn.count)
            token, total = draw(able, jax.vmap(jax.random.uniform)(here))
            proposal = at(able, token) - total
            if able is logits:
                return token, proposal, proposal
        return token, at(logits, token) - log_sum_exp(logits), proposal


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """The loop over steps, and what it reads: everything that stays as it is while paths are drawn."""

    sampler: Sampler
    plan: Plan
    model: LanguageModel
    context: Any
    hidden: Float[Array, 'B D']  # that the first token of each prompt's paths is drawn from
    keys: jax.Array  # of each path, [Q * N]
    limit: Int32[Array, 'S']  # most tokens of each path

    def all_paths(self, loop: Loop) -> Loop:
        """Draws every path: a first token in each slot, then steps, with refills, in ever fewer slots."""
        plan, pad = self.plan, self.sampler.vocabulary.pad_id
        loop = self.draw(loop, self.of_prompts(loop, self.model.logits(self.hidden)))
        for number, size in enumerate(plan.sizes):
            if number:
                loop = slots.shrink(plan, loop, size)
            enough = plan.sizes[number + 1] if number + 1 < len(plan.sizes) else 0
            if number == 0 and (plan.refills or self.sampler.adaptive is not None):
                loop = self.with_refills(loop, enough)
            else:
                loop = self.steps(loop, lambda loop, enough=enough: slots.left(plan, loop) > enough)
            loop = slots.flush(plan, loop, pad)
        return loop

    def steps(self, loop: Loop, go_on: Any) -> Loop:
        """Steps while `go_on(loop)`."""

        def step(loop: Loop) -> Loop:
            before = loop.slots
            hidden, own = self.model.extend(before.token, self.context, before.own, loop.seats)
            loop = dataclasses.replace(loop, slots=dataclasses.replace(before, own=own))
            if self.plan.refills:  # a new path has read nothing; its first token is its prompt's
                fresh = (before.count == 0)[:, None]
                hidden = jnp.where(fresh, self.of_prompts(loop, self.hidden), hidden)
            return self.draw(loop, self.model.logits(hidden))

        return jax.lax.while_loop(go_on, step, loop)

    def with_refills(self, loop: Loop, enough: int) -> Loop:
        """Steps with refills, until no path waits and at most `enough` are left in each part."""
        plan, pad = self.plan, self.sampler.vocabulary.pad_id

        def unfinished(loop: Loop) -> jax.Array:
            return loop.waiting.any() | (slots.left(plan, loop) > enough)

        def period(loop: Loop) -> Loop:
            end = loop.slots.step + plan.period
            often = loop.waiting.any() | (self.sampler.adaptive is not None)

            def go_on(loop: Loop) -> jax.Array:
                left = slots.left(plan, loop)
                return jnp.where(often, (loop.slots.step < end) & (left > 0), left > enough)

            loop = slots.flush(plan, self.steps(loop, go_on), pad)
            if self.sampler.adaptive is not None:
                loop = self.sampler.adaptive(plan, loop)
            return slots.refill(plan, loop, pad)

        return jax.lax.while_loop(unfinished, period, loop)

    def of_prompts(self, loop: Loop, array: Float[Array, 'B n']) -> Float[Array, 'S n']:
        """The row of its prompt for every slot."""
        if loop.seats is None:
            rows = loop.slots.path.shape[0]
            return jnp.repeat(array, rows // array.shape[0], axis=0, total_repeat_length=rows)
        return by_part(array, loop.seats.seat // self.plan.lanes)

    def draw(self, loop: Loop, logits: Float32[Array, 'S V']) -> Loop:
        """Draws a token in every slot that is alive, and writes it."""
        sampler, plan, before = self.sampler, self.plan, loop.slots
        room, pad = before.tokens.shape[1], sampler.vocabulary.pad_id
        # Made where the output embedding lies, which must not move, and then shared out by rows.
        logits = partitioning.spread(constrain(logits, 'tokens', 'vocabulary'))
        age = (before.step - 1 - jnp.arange(room)) % room
        keys, limit = self.keys, self.limit
        if loop.seats is not None:
            path = jnp.minimum(before.path, plan.paths - 1).reshape(plan.parts, -1)
            keys, limit = by_part(keys, path), by_part(limit, path)
        token, log_prob, proposal = sampler.choose(logits, Drawn(before.tokens, age, before.count), keys)
        token, log_prob, proposal = constrain((jnp.where(before.alive, token, pad), log_prob, proposal), 'tokens')
        column = before.step % room

        def write(ring: jax.Array, entry: jax.Array) -> jax.Array:
            # What a path that has ended left in this column is still to be written out.
            old = jax.lax.dynamic_index_in_dim(ring, column, axis=1, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(ring, jnp.where(before.alive, entry, old), column, axis=1)

        ends = jnp.isin(token, jnp.array(sampler.ends, jnp.int32)) & before.alive
        stop = before.stop
        if sampler.stop:
            stop, stopped = stops.read(sampler.vocabulary, sampler.stop, stop, token)
            ends |= stopped & before.alive
        count = before.count + before.alive
        after = Slots(
            step=before.step + 1,
            room=before.room + before.path.shape[0],
            path=before.path,
            first=before.first,
            count=count,
            token=token,
            alive=before.alive & ~ends & (count < limit),
            ended=before.ended | ends,
            stop=stop,
            tokens=write(before.tokens, token),
            log_probs=write(before.log_probs, log_prob),
            proposal_log_probs=write(before.proposal_log_probs, proposal),
            own=before.own,
        )
        return dataclasses.replace(loop, slots=after)


def default_tail(layers_apart: int, max_tokens: int) -> tuple[float, ...]:
    """Shares of the slots that the last paths move to. Each is a loop of its own to compile, which long paths pay back
    where a half empty step takes half the time: on CPUs, whose layers stand apart. Accelerators are as fast half
    empty."""
    if not layers_apart or max_tokens < LONG:
        return ()
    return TAILS[max(0, min(len(TAILS), LAYERS_COMPILED // layers_apart) - 1)]


def sample_keys(key: jax.Array, ids: UInt32[Array, 'Q 2'], samples: int) -> jax.Array:
    """One key a sample, [Q * N], folded from the key, the question's id and the sample's number."""

    def of_question(identity):
        mine = jax.random.fold_in(jax.random.fold_in(key, identity[0]), identity[1])
        return jax.vmap(jax.random.fold_in, (None, 0))(mine, jnp.arange(samples))

    return jax.vmap(of_question)(ids).reshape(-1)


def constrain_rows(loop: Loop) -> Loop:
    """Splits what the loop carries over the axes that paths are split over."""
    own = loop.slots.own
    split = lambda tree: jax.tree.map(lambda array: constrain(array, 'tokens') if array.ndim else array, tree)  # noqa: E731
    plain = split(dataclasses.replace(loop, slots=dataclasses.replace(loop.slots, own=None)))
    return dataclasses.replace(plain, slots=dataclasses.replace(plain.slots, own=own.map(split)))
