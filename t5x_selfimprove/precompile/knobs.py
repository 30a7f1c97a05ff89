"""What can be turned where a round does not fit: settings that cost time, and none of the method.

Fewer questions sampled at a time, a batch computed in more parts, layers recomputed in the backward pass, and the
parameters split further. The results of a run stay what they are but for rounding; the last, weights of int8 to sample
from and keys and values of int8 for what is drawn, change which paths are drawn.
"""

import dataclasses
from collections.abc import Iterator

import jax

from t5x_selfimprove import partitioning
from t5x_selfimprove.train import Improve


@dataclasses.dataclass(frozen=True)
class Knob:
    """A changed run, and in words what was changed."""

    name: str
    run: Improve


def knobs(run: Improve, mesh: jax.sharding.Mesh) -> Iterator[Knob]:
    """Changes to try, those first that cost least."""
    turned = run
    for change in (_remat, _fewer_questions, _more_parts):
        single = change(run, mesh)
        if single is not None:
            yield single
        both = change(turned, mesh)
        if both is not None:
            turned = both.run
    if turned != run:
        yield Knob('all of them', turned)
    for times in (2, 4, 8):
        yield from _more_tensor(turned, mesh, times)
    for names in (('weights',), ('weights', 'cache')):
        sampler = dataclasses.replace(turned.recipe.sampler, **dict.fromkeys(names, 'int8'))
        rounded = dataclasses.replace(turned, recipe=dataclasses.replace(turned.recipe, sampler=sampler))
        yield Knob(f"all of them and {', '.join(names)} = 'int8' in sampling", rounded)


def _remat(run: Improve, mesh: jax.sharding.Mesh) -> Knob | None:
    if run.model.remat == 'full':
        return None
    return Knob("remat = 'full'", dataclasses.replace(run, model=dataclasses.replace(run.model, remat='full')))


def _fewer_questions(run: Improve, mesh: jax.sharding.Mesh) -> Knob | None:
    """The least questions at a time that the mesh can split."""
    feed, parts = run.questions, partitioning.path_parts(mesh)
    whole = [size for size in range(parts, feed.per_batch, parts) if feed.per_round % size == 0]  # without padding
    smallest = whole[0] if whole else feed.per_batch
    if smallest == feed.per_batch:
        return None
    changed = dataclasses.replace(run, questions=dataclasses.replace(feed, per_batch=smallest))
    return Knob(f'per_batch = {smallest} questions at a time', changed)


def _more_parts(run: Improve, mesh: jax.sharding.Mesh) -> Knob | None:
    """Parts of a batch of as few rows as the mesh can split."""
    learner, parts = run.recipe.learner, partitioning.batch_parts(mesh)
    if 'accumulate' not in {field.name for field in dataclasses.fields(learner)}:
        return None
    most = max(1, learner.batch_rows // parts)
    accumulate = next(count for count in range(most, 0, -1) if learner.batch_rows % count == 0)
    if accumulate <= learner.accumulate:
        return None
    recipe = dataclasses.replace(run.recipe, learner=dataclasses.replace(learner, accumulate=accumulate))
    return Knob(f'accumulate = {accumulate} parts of a batch', dataclasses.replace(run, recipe=recipe))


def _more_tensor(run: Improve, mesh: jax.sharding.Mesh, times: int) -> Iterator[Knob]:
    """More devices along `tensor`, which alone splits the weights that are sampled from, where the heads divide."""
    sizes = dict(mesh.shape)
    if run.model.heads % (sizes['tensor'] * times):
        return
    for axis in ('data', 'fsdp'):
        if sizes[axis] % times == 0:
            sizes[axis] //= times
            sizes['tensor'] *= times
            shape = dataclasses.replace(run.place.mesh, **sizes)
            changed = dataclasses.replace(run, place=dataclasses.replace(run.place, mesh=shape))
            yield Knob(f'all of them and {axis} = {sizes[axis]}, tensor = {sizes["tensor"]}', changed)
            return
