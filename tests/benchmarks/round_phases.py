"""Where the time of a round goes: its phases, each compiled alone, beside the whole round as one program.

    python -m tests.benchmarks.round_phases OUT.json [--repeats=5] [--gin_file=...] [--gin.NAME=value]

Run it from the project's folder, on a machine that does nothing else; `taskset -c 0` shows one core. The phases are
those of `improve.one_round` on the questions of the first round: sampling, consolidation, packing the kept paths,
training. The model is that of the run directory INITIAL of the gin file where there is one: how long paths are, and
how many are kept, depends on it. Without one it is a new model (`--new_model`), which never ends by itself.
"""

import argparse
import dataclasses
import functools
import tempfile
from typing import Any

import jax

from t5x_selfimprove import config, improve, metrics, shares
from t5x_selfimprove.checkpoints import describe_model, read_model
from t5x_selfimprove.data.items import encode_examples
from t5x_selfimprove.formats import examples_in
from t5x_selfimprove.main import settle_environment
from t5x_selfimprove.models import decoding
from t5x_selfimprove.session import Session, versions
from t5x_selfimprove.train import Improve
from tests.benchmarks.timing import COLUMNS, Program, Timed, measure, show, write


def sample(model: Any, questions: Any, key: jax.Array, *, recipe: improve.Recipe) -> Any:
    """Paths of all questions [G, Q, ...], batch after batch."""
    frozen = decoding.for_sampling(model, recipe.sampler.weights)
    draw = lambda _, batch: (None, recipe.sampler(frozen, recipe.prompt(batch), key))  # noqa: E731
    return jax.lax.scan(draw, None, questions)[1]


def consolidate(model: Any, questions: Any, samples: Any, key: jax.Array, *, recipe: improve.Recipe) -> Any:
    """Verdicts of all batches."""
    decide = lambda _, batch: (None, recipe.consolidator(model, *batch, key))  # noqa: E731
    return jax.lax.scan(decide, None, (questions, samples))[1]


def pack(questions: Any, samples: Any, keep: jax.Array, key: jax.Array, *, recipe: improve.Recipe) -> Any:
    """Kept paths of all batches as packed rows."""

    def batch(_, part: Any) -> Any:
        questions, samples, keep = part
        pad = recipe.sampler.vocabulary.pad_id
        return None, examples_in(recipe.lessons, questions, samples, keep, recipe.consolidator.answers, pad)

    examples = jax.lax.scan(batch, None, (questions, samples, keep))[1]
    examples = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), examples)
    return recipe.learner.packing(examples, key)[0]


def programs(settings: Improve, session: Session, new_model: bool) -> list[Program]:
    """The phases and the whole round on the same questions."""
    recipe, learner = settings.recipe, settings.recipe.learner

    def create() -> Any:
        model = settings.model.create(settings.vocabulary.size, jax.random.key(0))
        return improve.new_state(model, learner, settings.place.seed, learner.start_from == 'base')

    state = session.place_state(create)
    if not new_model:
        describe_model(settings.initial, settings.vocabulary)
        state = dataclasses.replace(state, model=read_model(settings.initial, state.model))
    feed, replay = settings.questions, None
    _, batches = feed.take(0, settings.vocabulary, settings.answers, settings.labels)
    questions, _ = shares.place(session.mesh, batches, 1, feed.per_batch)
    if settings.replay is not None:
        prompt = recipe.lessons[0].prompt
        items = settings.replay.take(0, settings.replay.size)
        rows, _ = encode_examples(items, settings.vocabulary, prompt.before, prompt.after, settings.replay_room)
        replay, _ = jax.jit(learner.packing)(session.replicate(rows), jax.random.key(settings.place.seed))
    sample_key, judge_key, learn_key = jax.random.split(improve.round_key(state), 3)
    part = functools.partial(functools.partial, recipe=recipe)
    drawing = Program('sample', part(sample), (state.model, questions, sample_key), tokens=sampled)
    samples = drawing()
    voting = Program('consolidate', part(consolidate), (state.model, questions, samples, judge_key))
    packing = Program('pack', part(pack), (questions, samples, voting().keep, learn_key))
    train = functools.partial(learner.train, steps=learner.steps)
    training = Program('train', train, (state, packing(), replay, learn_key), consumes=True, tokens=trained)
    whole = Program('whole round', part(improve.one_round), (state, questions, replay), consumes=True, tokens=both)
    return [drawing, voting, packing, training, whole]


def sampled(samples: Any) -> float:
    """Tokens drawn."""
    return float(samples.mask.sum())


def trained(result: tuple[Any, metrics.Metrics]) -> float:
    """Tokens in the rows trained on."""
    return metrics.values(result[1])['training_tokens']


def both(result: tuple[Any, improve.Round]) -> float:
    """Tokens drawn and tokens trained on."""
    found = metrics.values(result[1].metrics)
    return found['sampled_tokens'] + found['training_tokens']


def rows_of(timed: list[Timed]) -> list[list[str]]:
    """The rows of the table: every phase with its share of the sum of the phases, the sum, and the whole."""
    facts = [one.facts() for one in timed]
    total = sum(fact['median'] for fact in facts[:-1])
    rows = [[*one.row(), f'{100 * fact["median"] / total:.1f}'] for one, fact in zip(timed, facts, strict=True)]
    cpu = sum(fact['cpu_median'] for fact in facts[:-1])
    compiled = sum(one.compile_seconds for one in timed[:-1])
    rows.insert(-1, ['sum of the phases', f'{total:.3f}', '', f'{cpu:.3f}', '-', '-', f'{compiled:.1f}', '100.0'])
    return rows


def main() -> None:
    """Measures, prints the table, writes the file."""
    settle_environment()  # XLA reads its flags when it is first asked for a device
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.round_phases', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--gin_file', action='append')
    parser.add_argument('--new_model', action='store_true')
    asked, rest = parser.parse_known_args()
    files = asked.gin_file or ['gin/runs/quickstart.gin']
    given = config.parse_arguments(['improve', *(f'--gin_file={file}' for file in files), *rest])
    settings = config.build(config.ROOTS['improve'], given.files, given.bindings).value
    with tempfile.TemporaryDirectory() as directory:
        place = dataclasses.replace(settings.place, directory=directory, tensorboard=False)
        with Session(place, '') as session:
            timed = measure(programs(settings, session, asked.new_model), asked.repeats)
            devices = [f'{device.platform}: {device.device_kind}' for device in session.devices]
    batch = {name: text for name, text in settings.batch_arithmetic().items() if name != 'rounds'}
    title = f'{", ".join(files)} on {len(devices)} x {devices[0]}, {asked.repeats} repeats\n' + '\n'.join(
        batch.values()
    )
    show(title, (*COLUMNS, '% of the sum'), rows_of(timed))
    facts = {'files': files, 'bindings': given.bindings, 'new_model': asked.new_model, 'batch': batch}
    write(asked.out, {**facts, 'devices': devices, 'versions': versions(), 'programs': [one.facts() for one in timed]})


if __name__ == '__main__':
    main()
