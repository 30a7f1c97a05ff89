"""Seconds of the two ways to answer by a mixture of experts, forward and with gradients, by number of tokens.

    python -m tests.benchmarks.experts OUT.json [--repeats=5] [--experts=64] [--chosen=4] [--width=128] [--hidden=64]

Run it from the project's folder, on a machine that does nothing else; `taskset -c 0` shows one core.
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from t5x_selfimprove.models import experts
from t5x_selfimprove.models.config import Experts
from tests.benchmarks.timing import COLUMNS, Program, measure, show, write

TOKENS = (16, 64, 512, 2048)


def programs(count: int, chosen: int, width: int, hidden: int, tokens: int) -> list[Program]:
    """Both ways, forward and backward, over the same tokens and choices."""
    layer = experts.MixtureOfExperts(width, Experts(count, chosen, hidden), 'silu', jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (tokens, width))
    share, best = jax.lax.top_k(jax.nn.softmax(x @ layer.router[...]), chosen)
    weights = (layer.gate[...], layer.up[...], layer.down[...])
    made = []
    for way in (experts.one_by_one, experts.sorted_by_expert):
        forward = functools.partial(way, 'silu', jnp.zeros_like(x), x, best, share)
        backward = jax.grad(lambda weights, forward=forward: (forward(weights) ** 2).sum())
        count_tokens = lambda result: float(tokens)  # noqa: E731
        made += [
            Program(f'{way.__name__}, {tokens} tokens', forward, (weights,), tokens=count_tokens),
            Program(f'{way.__name__}, {tokens} tokens, gradients', backward, (weights,), tokens=count_tokens),
        ]
    return made


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out')
    for name, default in (('repeats', 5), ('experts', 64), ('chosen', 4), ('width', 128), ('hidden', 64)):
        parser.add_argument(f'--{name}', type=int, default=default)
    given = parser.parse_args()
    sizes = (given.experts, given.chosen, given.width, given.hidden)
    timed = measure([each for tokens in TOKENS for each in programs(*sizes, tokens)], given.repeats)
    show('a mixture of experts', COLUMNS, [each.row() for each in timed])
    write(given.out, {'settings': vars(given), 'programs': [each.facts() for each in timed]})


if __name__ == '__main__':
    main()
