"""Slots: paths are drawn in a fixed number of places, and one that ends leaves its place to the next.

    slots    0  1  2           path 0 of question 0, path 0 of question 1, path 1 of question 0, ...
    step 0   a  c  b
    step 1   a  c  b
    step 2   a  .  b           c has ended
    refill   a  d  b           every `period` steps, while there are paths that wait
    ...
    shrink   a  d              when none waits and few are left: the last paths move together, the program gets smaller

Everything here is arrays of fixed shape inside one program. Slots are in D parts, one for each part that a batch is
split into over devices; a part draws the paths of its own questions, so that nothing moves between devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from t5x_selfimprove.models.cache import Seats, by_part
from t5x_selfimprove.records import record


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the paths of a batch are shared out to slots; static.

    A path is known by its number in its part, question-major: question * samples + sample.
    """

    parts: int  # D
    questions: int  # of a part
    samples: int  # N
    variants: int  # prompts of a question; sample i reads prompt i mod variants
    sizes: tuple[int, ...]  # slots of a part, at first and after each shrinking
    period: int  # steps between refills

    @property
    def paths(self) -> int:
        """Paths of a part."""
        return self.questions * self.samples

    @property
    def refills(self) -> bool:
        """Whether there are paths that wait at the start."""
        return self.sizes[0] < self.paths

    @property
    def in_order(self) -> bool:
        """Whether the slots at first are the paths, and neighbours read the same prompt."""
        return not self.refills and self.variants == 1

    @property
    def lanes(self) -> int:
        """Most samples that read the same prompt."""
        return -(-self.samples // self.variants)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Paths in the order in which they are begun: each question gets its first sample before any its second."""
        return np.arange(self.paths).reshape(self.questions, self.samples).T.ravel()

    @functools.cached_property
    def seat(self) -> np.ndarray:
        """Seat of each path: prompt * lanes + lane. The entry after the last is of slots that are idle."""
        question, sample = np.divmod(np.arange(self.paths), self.samples)
        prompt = question * self.variants + sample % self.variants
        return np.append(prompt * self.lanes + sample // self.variants, 0).astype(np.int32)


@record
class Paths:
    """What the slots leave, path by path; R = D * paths. It becomes `Samples`."""

    tokens: Int32[Array, 'R C']
    log_probs: Float32[Array, 'R C']
    proposal_log_probs: Float32[Array, 'R C']
    count: Int32[Array, 'R']  # tokens; 0 = not begun, or given up
    ended: Bool[Array, 'R']


@record
class Slots:
    """S = D * s places in which paths are drawn.

    tokens, log_probs and proposal_log_probs are rings like the keys and values: at each step all slots write the same
    column, `step` mod C. A path that began at step 3 of a ring of 4 has its tokens in columns 3, 0, 1, 2.
    """

    step: Int32[Array, '']  # draws made
    room: Int32[Array, '']  # tokens that there was room for: slots at each step, summed
    path: Int32[Array, 'S']  # number of the path in its part; `Plan.paths` where the slot is idle
    first: Int32[Array, 'S']  # step of the path's first draw
    count: Int32[Array, 'S']  # tokens drawn
    token: Int32[Array, 'S']  # drawn last
    alive: Bool[Array, 'S']  # still drawing
    ended: Bool[Array, 'S']  # by itself
    stop: Int32[Array, 'S']  # state of the automaton that looks for texts that end a path
    tokens: Int32[Array, 'S C']
    log_probs: Float32[Array, 'S C']
    proposal_log_probs: Float32[Array, 'S C']
    own: Any  # keys and values of what was drawn

    def map(self, change: Callable[[jax.Array], jax.Array]) -> 'Slots':
        """The slots in which arrays that lead with S are changed along that axis."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {name: fields.pop(name) for name in ('step', 'room')}
        own = fields.pop('own').map(change)
        return Slots(own=own, **kept, **{name: change(array) for name, array in fields.items()})


@record
class Loop:
    """What the loop carries."""

    slots: Slots
    paths: Paths
    waiting: Bool[Array, 'R']  # paths not begun
    seats: Any  # Seats, or None where the slots are in order


def start(plan: Plan, room: int, pad: int, own: Any) -> Loop:
    """The loop before the first draw: every slot has a path. `own` is an empty ring for all slots."""
    size, total = plan.sizes[0], plan.parts * plan.paths
    first = plan.order[:size] if plan.refills else np.arange(size)
    zeros = lambda rows, kind: jnp.zeros(rows, kind)  # noqa: E731
    rows = plan.parts * size
    slots = Slots(
        step=jnp.zeros((), jnp.int32),
        room=jnp.zeros((), jnp.int32),
        path=jnp.tile(jnp.asarray(first, jnp.int32), plan.parts),
        first=zeros(rows, jnp.int32),
        count=zeros(rows, jnp.int32),
        token=jnp.full(rows, pad, jnp.int32),
        alive=jnp.ones(rows, bool),
        ended=zeros(rows, bool),
        stop=zeros(rows, jnp.int32),
        tokens=jnp.full((rows, room), pad, jnp.int32),
        log_probs=zeros((rows, room), jnp.float32),
        proposal_log_probs=zeros((rows, room), jnp.float32),
        own=own,
    )
    paths = Paths(
        tokens=jnp.full((total, room), pad, jnp.int32),
        log_probs=zeros((total, room), jnp.float32),
        proposal_log_probs=zeros((total, room), jnp.float32),
        count=zeros(total, jnp.int32),
        ended=zeros(total, bool),
    )
    waiting = np.ones(plan.paths, bool)
    waiting[first] = False
    loop = Loop(slots, paths, jnp.tile(jnp.asarray(waiting), plan.parts), None)
    return loop if plan.in_order else dataclasses.replace(loop, seats=seats_of(plan, slots.path))


def seats_of(plan: Plan, path: Int32[Array, 'S']) -> Seats:
    """Where the paths in the slots sit."""
    table, room = jnp.asarray(plan.seat), plan.questions * plan.variants * plan.lanes

    def of_part(path: Int32[Array, 's']) -> tuple[Int32[Array, 's'], Int32[Array, 'm']]:
        seat = table[path]
        taken = jnp.where(path < plan.paths, seat, room)
        return seat, jnp.zeros(room, jnp.int32).at[taken].set(jnp.arange(path.shape[0]), mode='drop')

    return Seats(*jax.vmap(of_part)(path.reshape(plan.parts, -1)))


def flush(plan: Plan, loop: Loop, pad: int) -> Loop:
    """Writes out the paths that have ended; their slots are idle."""
    slots, room = loop.slots, loop.slots.tokens.shape[1]
    done = ~slots.alive & (slots.path < plan.paths)
    column = (slots.first[:, None] + jnp.arange(room)) % room
    target = jnp.where(done, slots.path, plan.paths).reshape(plan.parts, -1)

    def write(into: jax.Array, rows: jax.Array) -> jax.Array:
        into_parts, rows = (array.reshape(plan.parts, -1, *array.shape[1:]) for array in (into, rows))
        scatter = lambda into, rows, target: into.at[target].set(rows, mode='drop')  # noqa: E731
        return jax.vmap(scatter)(into_parts, rows, target).reshape(into.shape)

    mine = jnp.arange(room) < slots.count[:, None]
    unrolled = lambda ring, empty: jnp.where(mine, jnp.take_along_axis(ring, column, axis=1), empty)  # noqa: E731
    paths = Paths(
        tokens=write(loop.paths.tokens, unrolled(slots.tokens, pad)),
        log_probs=write(loop.paths.log_probs, unrolled(slots.log_probs, 0.0)),
        proposal_log_probs=write(loop.paths.proposal_log_probs, unrolled(slots.proposal_log_probs, 0.0)),
        count=write(loop.paths.count, slots.count),
        ended=write(loop.paths.ended, slots.ended),
    )
    slots = dataclasses.replace(slots, path=jnp.where(done, plan.paths, slots.path))
    return dataclasses.replace(loop, slots=slots, paths=paths)


def refill(plan: Plan, loop: Loop, pad: int) -> Loop:
    """Gives idle slots to paths that wait."""
    slots = loop.slots
    order = jnp.asarray(plan.order)

    def of_part(path: Int32[Array, 's'], waiting: Bool[Array, 'r']) -> tuple[Int32[Array, 's'], Bool[Array, 'r']]:
        idle = path == plan.paths
        place = jnp.nonzero(waiting[order], size=path.shape[0], fill_value=plan.paths)[0]
        following = jnp.append(order, plan.paths)[place]
        taken = jnp.where(idle, following[jnp.cumsum(idle) - 1], path).astype(jnp.int32)
        return taken, waiting.at[jnp.where(idle, taken, plan.paths)].set(False, mode='drop')

    path, waiting = jax.vmap(of_part)(*(array.reshape(plan.parts, -1) for array in (slots.path, loop.waiting)))
    path = path.reshape(-1)
    fresh = (path != slots.path) & (path < plan.paths)
    slots = dataclasses.replace(
        slots,
        path=path,
        first=jnp.where(fresh, slots.step, slots.first),
        count=jnp.where(fresh, 0, slots.count),
        token=jnp.where(fresh, pad, slots.token),
        alive=slots.alive | fresh,
        ended=slots.ended & ~fresh,
        stop=jnp.where(fresh, 0, slots.stop),
        own=slots.own.restarted(fresh),
    )
    return Loop(slots, loop.paths, waiting.reshape(-1), seats_of(plan, path))


def shrink(plan: Plan, loop: Loop, size: int) -> Loop:
    """Moves the paths that are still drawn together, into `size` slots of each part. None may be lost by it."""
    alive = loop.slots.alive.reshape(plan.parts, -1)
    rows = jnp.argsort(~alive, axis=1, stable=True)[:, :size]
    slots = loop.slots.map(lambda array: by_part(array, rows))
    return dataclasses.replace(loop, slots=slots, seats=seats_of(plan, slots.path))


def left(plan: Plan, loop: Loop) -> Int32[Array, '']:
    """Paths still drawn in the part that has most of them."""
    return loop.slots.alive.reshape(plan.parts, -1).sum(axis=1).max()


def slots_that_fit(paths: int, bytes_of_one: int, room: int) -> int:
    """The most slots, of at most one a path, whose keys and values fit into `room` bytes: all, or a multiple of 8."""
    fit = max(1, room // max(1, bytes_of_one))
    if fit >= paths:
        return paths
    return fit // 8 * 8 if fit >= 8 else fit


def sizes_of(slots: int, tail: tuple[float, ...]) -> tuple[int, ...]:
    """Slots at first and after each shrinking to a share of `tail`; sizes that would not be smaller are left out."""
    sizes = [slots]
    for share in tail:
        size = math.ceil(slots * share)
        if size < sizes[-1]:
            sizes.append(size)
    return tuple(sizes)
