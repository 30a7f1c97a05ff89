"""What these cores can do at most, measured beside the arms of `sampling`, float32.

decode products   of 64 rows with every matrix of the model in turn, each in an array of its own, [in, out]: weights
                  come from memory as they do in decoding; by XLA
packed products   the same by the kernel that our sampler takes (models/native); left out without a C++ compiler
large product     1024 x 1024 x 1024
multiply-adds     in registers, by a C program (`gcc -O3 -march=native`) on each core; left out without gcc
"""

import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_selfimprove.models import native, packed
from tests.benchmarks.sampling_workloads import Sizes

STEPS = 10  # of decoding in one measurement
SECONDS = 2.0  # of measurements: the first are slower where another arm was on the cores before
LARGE = 1024
TURNS = 40_000_000
SUMS = [f's{number}' for number in range(12)]  # independent: they hide the latency of two multiply-add units
PEAK = f"""
#include <stdio.h>
#include <time.h>
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
int main(void) {{
  V {', '.join(f'{name} = {{0}}' for name in SUMS)}, a, b;
  for (int j = 0; j < LANES; j++) {{ a[j] = 0.999f; b[j] = 0.001f * j; }}
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (long turn = 0; turn < {TURNS}; turn++) {{
    {' '.join(f'{name} = {name} * a + b;' for name in SUMS)}
    __asm__ volatile("" : {', '.join(f'"+v"({name})' for name in SUMS)});
  }}
  clock_gettime(CLOCK_MONOTONIC, &to);
  V all = {' + '.join(SUMS)};
  double seconds = to.tv_sec - from.tv_sec + 1e-9 * (to.tv_nsec - from.tv_nsec);
  printf("%f %f\\n", 2.0 * LANES * {len(SUMS)} * {TURNS} / seconds, all[3]);
}}
"""


Product = Callable[[jax.Array, jax.Array, int], jax.Array]  # of rows and a weight, with its outputs


def decode_layer(x: jax.Array, weights: dict[str, jax.Array], widths: dict[str, int], product: Product) -> jax.Array:
    """The products of a layer, each feeding the next; what is between them takes next to no time."""
    by = lambda x, name: product(x, weights[name], widths[name])  # noqa: E731
    query, key, value = (by(x, name) for name in ('query', 'key', 'value'))
    mixed = query + jnp.concatenate([key, value], axis=-1)
    mixed = by(mixed, 'out')
    return 0.3 * by(by(mixed, 'gate') + by(mixed, 'up'), 'down')


class Products:
    """The arm. A turn measures every rate, in operations a second."""

    def __init__(self, sizes: Sizes, rows: int):
        """Compiles the products.

        Raises:
          ValueError: sizes for which queries are not as wide as keys and values together.
        """
        if sizes.heads != 2 * sizes.kv_heads:
            raise ValueError(f'heads = {sizes.heads} must be twice kv_heads = {sizes.kv_heads}')
        shapes = {
            'query': (sizes.width, sizes.heads * sizes.head_size),
            'key': (sizes.width, sizes.kv_heads * sizes.head_size),
            'value': (sizes.width, sizes.kv_heads * sizes.head_size),
            'out': (sizes.heads * sizes.head_size, sizes.width),
            'gate': (sizes.width, sizes.feed_forward),
            'up': (sizes.width, sizes.feed_forward),
            'down': (sizes.feed_forward, sizes.width),
        }
        keys = iter(jax.random.split(jax.random.key(0), 7 * sizes.layers + 3))
        normal = lambda *shape: jax.random.normal(next(keys), shape) * shape[-2] ** -0.5  # noqa: E731
        layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(sizes.layers)]
        head, x, large = normal(sizes.width, sizes.vocabulary), normal(rows, sizes.width), normal(LARGE, LARGE)

        widths = {name: shape[1] for name, shape in shapes.items()}
        step = (2 * rows * sizes.layers * sizes.layer_parameters, 2 * rows * sizes.width * sizes.vocabulary)

        def programs(product: Product, layers: Any, head: jax.Array) -> list[tuple[Callable[[], Any], int]]:
            def through(x: jax.Array, layers: list[dict[str, jax.Array]]) -> jax.Array:
                for weights in layers:
                    x = decode_layer(x, weights, widths, product)
                return x

            def scored(x: jax.Array, head: jax.Array) -> jax.Array:
                logits = product(x, head, sizes.vocabulary)  # all are used, or the product would be of fewer columns
                return logits[:, : sizes.width] + 1e-6 * logits.max(axis=-1, keepdims=True)

            return list(zip([repeated(through, x, layers), repeated(scored, x, head)], step, strict=True))

        self.steps = {'decode products': programs(lambda x, weight, _: x @ weight, layers, head)}
        if not native.trouble('float32'):
            self.steps['packed products'] = programs(packed.product, *jax.tree.map(packed.pack, (layers, head)))
        large_product = repeated(lambda x, large: large @ x, large, large)
        self.steps['large product'] = [(large_product, 2 * LARGE**3)]
        self.facts: dict[str, Any] = {}
        self.peak = _peak_program()
        for parts in self.steps.values():
            for program, _ in parts:
                program()

    def __call__(self) -> dict[str, Any]:
        """Operations a second of each, of the layers and the output embedding together."""
        found = {}
        for name, parts in self.steps.items():
            seconds = sum(middle(program) for program, _ in parts) / STEPS
            found[name] = sum(count for _, count in parts) / seconds
        if self.peak is not None:
            runs = [subprocess.Popen([self.peak], stdout=subprocess.PIPE) for _ in os.sched_getaffinity(0)]
            found['multiply-adds'] = sum(float(run.communicate()[0].split()[0]) for run in runs)
        return {'rates': found}


def middle(program: Callable[[], Any]) -> float:
    """Seconds that a call takes, the median over `SECONDS`."""
    runs: list[float] = []
    while sum(runs) < SECONDS:
        start = time.perf_counter()
        program()
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def repeated(step: Callable, x: jax.Array, weights: Any) -> Callable[[], Any]:
    """A compiled program that takes `STEPS` steps, the result of one the input of the next."""
    loop = lambda x, weights: jax.lax.fori_loop(0, STEPS, lambda _, x: step(x, weights), x)  # noqa: E731
    compiled = jax.jit(loop).lower(x, weights).compile()
    return lambda: jax.block_until_ready(compiled(x, weights))


def _peak_program() -> str | None:
    """The C program, compiled; None without a compiler that takes it."""
    if shutil.which('gcc') is None:
        return None
    folder = pathlib.Path(tempfile.mkdtemp())
    source, program = folder / 'peak.c', folder / 'peak'
    source.write_text(PEAK, encoding='utf-8')
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(['gcc', '-O3', '-march=native', '-o', program, source], check=True, capture_output=True)
        return str(program)
    return None
