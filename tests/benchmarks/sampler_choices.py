"""What numbers kinds and fewer paths cost a vote: accuracy, tokens and time by settings of the sampler, side by side.

    python -m tests.benchmarks.sampler_choices OUT.json [--repeats=3] [--questions=1024] [--gin_file=...]
        [--gin.NAME=value]

Run it from the project's folder, on a machine that does nothing else; `taskset -c 0` shows one core. Every row answers
the labelled questions of the run's evaluation with the model of the run directory INITIAL of the gin file (of the
quickstart: its model before any round), by the vote over N paths. The keys are the same: rows differ by their settings
alone. `changed`: questions whose verdict is another one than in the first row. `drift`: the largest difference between
log-probabilities of drawn tokens and those that the model in float32 gives them.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import config, improve
from t5x_selfimprove.checkpoints import describe_model, read_model
from t5x_selfimprove.estimators import proportion
from t5x_selfimprove.main import settle_environment
from t5x_selfimprove.models import decoding
from t5x_selfimprove.sampling.adaptive import Adaptive
from t5x_selfimprove.session import versions
from tests.benchmarks.timing import Program, measure, show, write

CONFIDENCE = 0.95
SLOTS = 4  # questions' worth of paths that are drawn at the same time where slots are refilled


def choices(evaluation: Any) -> dict[str, dict[str, Any]]:
    """Settings of the sampler by name; the first is compared with."""
    answers = evaluation.consolidator.answers
    few = {'slots': SLOTS * evaluation.sampler.samples, 'period': 4}
    certain, likely = Adaptive(answers), Adaptive(answers, confidence=CONFIDENCE)
    return {
        'float32, all paths': {},
        'bfloat16': {'dtype': 'bfloat16'},
        'int8 weights': {'weights': 'int8'},
        'int8 keys and values': {'cache': 'int8'},
        'few slots, all paths': few,
        'until the majority is certain': {**few, 'adaptive': certain},
        f'until it is {CONFIDENCE:.0%} likely': {**few, 'adaptive': likely},
    }


def answer(model: Any, questions: Any, key: jax.Array, *, evaluation: Any, sampler: Any) -> tuple[Any, Any]:
    """Paths and verdicts of all batches [G, Q, ...]."""
    frozen = decoding.for_sampling(model, sampler.weights)

    def batch(_, questions: Any) -> Any:
        samples = sampler(frozen, evaluation.prompt(questions), key)
        return None, (samples, evaluation.consolidator(frozen, questions, samples, key))

    return jax.lax.scan(batch, None, questions)[1]


@functools.partial(jax.jit, static_argnames=('prompt', 'pad'))
def drift(model: Any, questions: Any, samples: Any, prompt: Any, pad: int) -> jax.Array:
    """The largest difference between log-probabilities of drawn tokens and those that the model gives them."""

    def batch(_, part: Any) -> Any:
        questions, samples = part
        found = improve.log_prob_drift(model, prompt(questions), samples, samples.tokens.shape[0], pad)
        return None, found['log_prob_drift'].total

    return jax.lax.scan(batch, None, (questions, samples))[1].max()


def main() -> None:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampler_choices', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--questions', type=int, default=1024)
    parser.add_argument('--gin_file', action='append')
    asked, bindings = parser.parse_known_args()
    settle_environment()
    files = [f'--gin_file={name}' for name in asked.gin_file or ['gin/runs/quickstart.gin']]
    given = config.parse_arguments(['evaluate', *files, '--gin.session.Place.cpu_devices=None', *bindings])
    settings = config.build(config.ROOTS['evaluate'], given.files, given.bindings).value
    evaluation = settings.evaluation
    describe_model(settings.initial, settings.vocabulary)
    feed = dataclasses.replace(settings.evaluation_questions, per_round=asked.questions)
    _, questions = feed.take(0, settings.vocabulary, evaluation.consolidator.answers, True)

    def model(**fields: Any) -> Any:
        new = dataclasses.replace(settings.model, **fields).create(settings.vocabulary.size, jax.random.key(0))
        return read_model(settings.initial, new)

    wide, programs = model(), []
    for name, fields in choices(evaluation).items():
        ours = model(dtype=fields.pop('dtype')) if 'dtype' in fields else wide
        sampler = dataclasses.replace(evaluation.sampler, **fields)

        run = functools.partial(answer, evaluation=evaluation, sampler=sampler)
        tokens = lambda found: float(found[0].mask.sum())  # noqa: E731
        programs.append(Program(name, run, (ours, questions, jax.random.key(1)), tokens=tokens))
    timed = measure(programs, asked.repeats)
    pad, facts = settings.vocabulary.pad_id, []
    first, counted = programs[0]()[1], np.asarray(questions.weight * questions.known) > 0
    for program, took in zip(programs, timed, strict=True):
        samples, verdict = program()
        right = (verdict.chosen == questions.answer).all(-1) & (verdict.votes > 0)
        facts.append(
            {
                **took.facts(),
                'majority_accuracy': proportion(np.asarray(right)[counted]),
                'changed': int(np.asarray((verdict.chosen != first.chosen).any(-1))[counted].sum()),
                'paths': int(samples.drawn.sum()),
                'saved': 1 - took.tokens / timed[0].tokens,
                'drift': float(drift(wide, questions, samples, evaluation.prompt, pad)),
            }
        )
    report(facts, int(counted.sum()))
    write(asked.out, {'choices': facts, 'versions': versions()})


def report(facts: list[dict[str, Any]], questions: int) -> None:
    """Prints the table."""
    rows = []
    for fact in facts:
        right = fact['majority_accuracy']
        accuracy = f'{right["value"]:.1%} [{right["low"]:.1%} .. {right["high"]:.1%}]'
        counts = [f'{fact["changed"]}', f'{fact["paths"]:,}', f'{fact["tokens"]:,.0f}', f'{fact["saved"]:.1%}']
        rows.append([fact['name'], accuracy, *counts, f'{fact["cpu_median"]:.2f}', f'{fact["drift"]:.1g}'])
    columns = ['sampler', 'majority accuracy', 'changed', 'paths', 'tokens', 'saved', 'CPU s', 'drift']
    show(f'{questions} questions', columns, rows)


if __name__ == '__main__':
    main()
