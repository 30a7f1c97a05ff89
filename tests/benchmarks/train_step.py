"""Tokens a second of one optimizer update, beside the same update in PyTorch and transformers.

    python -m tests.benchmarks.train_step OUT.json [--repeats=3] [--cores=0] [--arms ...]

A Qwen3 of 8 layers (width 512, 8 heads, 4 key/value heads, feed-forward 1,536, vocabulary 32,000, tied: 41.6 M
parameters) makes one AdamW update on 32 rows of 256 tokens. Every arm is a process of its own on the same cores, and
they take turns, so that a busy machine slows all of them. Needs torch and transformers for the arms of that name.
Memory: up to 9 GB for an arm; an arm keeps its memory between its turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROWS, LENGTH, VOCABULARY = 32, 256, 32_000
SIZES = {'width': 512, 'layers': 8, 'heads': 8, 'kv_heads': 4, 'head_size': 64, 'feed_forward': 1536}
OURS = {
    'float32': {},
    'float32, layers recomputed': {'remat': 'full'},
    'float32, layers but their matrix products recomputed': {'remat': 'dots'},
    'bfloat16 products': {'dtype': 'bfloat16'},
    'bfloat16 products by YNNPACK': {'dtype': 'bfloat16'},
    'bfloat16 products by YNNPACK, layers recomputed': {'dtype': 'bfloat16', 'remat': 'full'},
    'bfloat16 products by YNNPACK, layers but their products recomputed': {'dtype': 'bfloat16', 'remat': 'dots'},
}
# XLA's own products are the faster ones in float32, and its fusions with YNNPACK slow (see sampler_batch).
FLAG = '--xla_cpu_experimental_ynn_fusion_type='
TORCH = {'PyTorch float32': False, 'PyTorch bfloat16 autocast': True}


def ours(fields: dict) -> Callable[[], float]:
    """A function that makes one update and returns its loss."""
    import jax
    import jax.numpy as jnp

    from t5x_selfimprove.improve import new_state
    from t5x_selfimprove.learning.lessons import Packing
    from t5x_selfimprove.learning.optimizers import AdamW, Schedule
    from t5x_selfimprove.learning.supervised import Supervised
    from t5x_selfimprove.models.config import TransformerConfig
    from t5x_selfimprove.records import Examples

    config = TransformerConfig(**SIZES, qk_norm=True, tied=True, **fields)
    learner = Supervised(Packing(LENGTH), AdamW(Schedule(1e-3, 0, 'constant')), steps=1, batch_rows=ROWS)
    state = jax.jit(lambda: new_state(config.create(VOCABULARY, jax.random.key(0)), learner, 0, False))()
    tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 3, VOCABULARY)
    full = jnp.full(ROWS, LENGTH)
    examples = Examples(tokens, jnp.ones(ROWS, jnp.int32), full, jnp.ones(ROWS))
    lessons, _ = learner.packing(examples, jax.random.key(2))
    step = jax.jit(learner.update, donate_argnums=0).lower(state, lessons, jax.random.key(3)).compile()
    print(f'temporary {step.memory_analysis().temp_size_in_bytes / 2**30:.2f} GiB', file=sys.stderr)
    kept = [state]

    def update() -> float:
        kept[0], metrics = step(kept[0], lessons, jax.random.key(3))
        return float(metrics['loss'].total / metrics['loss'].weight)

    return update


def torch_arm(autocast: bool) -> Callable[[], float]:
    """The same update in PyTorch: forward with labels, backward, AdamW."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=SIZES['width'],
        num_hidden_layers=SIZES['layers'],
        num_attention_heads=SIZES['heads'],
        num_key_value_heads=SIZES['kv_heads'],
        head_dim=SIZES['head_size'],
        intermediate_size=SIZES['feed_forward'],
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.Qwen3ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH))

    def update() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return update


def work(name: str) -> None:
    """One arm: warms up, then makes an update for every line it reads and answers its seconds."""
    update = torch_arm(TORCH[name]) if name in TORCH else ours(OURS[name])
    first = update()
    print(json.dumps({'first_loss': first}), flush=True)
    for _ in sys.stdin:
        cpu, start = time.process_time(), time.perf_counter()
        loss = update()
        facts = {'seconds': time.perf_counter() - start, 'cpu_seconds': time.process_time() - cpu, 'loss': loss}
        print(json.dumps(facts), flush=True)


def start(name: str, cores: set[int]) -> subprocess.Popen:
    """The process of an arm, on the given cores."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
    environment.setdefault('XLA_FLAGS', FLAG + ('LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT' if 'YNNPACK' in name else ''))
    count = str(len(cores))
    environment |= {'OMP_NUM_THREADS': count, 'MKL_NUM_THREADS': count}
    command = [sys.executable, '-m', 'tests.benchmarks.train_step', '--work', name]
    pin = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, preexec_fn=pin, **pipes)


def answer(arm: subprocess.Popen) -> dict:
    """The arm's next line. Raises RuntimeError where it has ended."""
    line = arm.stdout.readline()
    if not line:
        raise RuntimeError(f'an arm ended with status {arm.wait()}: {arm.args}')
    return json.loads(line)


def main() -> None:
    """Runs the arms in turn; prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('out', nargs='?', default='train_step.json')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--arms', nargs='+', choices=[*OURS, *TORCH], default=[*OURS, *TORCH])
    parser.add_argument('--work', choices=[*OURS, *TORCH])
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work)
    found, arms = {}, {}
    for name in arguments.arms:  # one after the other, so that no two compile or warm up at once
        arms[name] = start(name, set(arguments.cores))
        found[name] = {**answer(arms[name]), 'repeats': []}
    for _ in range(arguments.repeats):
        for name, arm in arms.items():
            arm.stdin.write('\n')
            arm.stdin.flush()
            found[name]['repeats'].append(answer(arm))
    for arm in arms.values():
        arm.stdin.close()
        arm.wait()
    report(found, arguments)


def report(found: dict, arguments: argparse.Namespace) -> None:
    """Prints the table, ratios against the first PyTorch arm, and writes the file."""
    from tests.benchmarks.timing import show, write

    rate = {}
    for name, facts in found.items():
        seconds = sorted(each['seconds'] for each in facts['repeats'])
        rate[name] = [ROWS * LENGTH / value for value in (statistics.median(seconds), seconds[-1], seconds[0])]
    against = [name for name in TORCH if name in rate]
    rows = []
    for name, (middle, low, high) in rate.items():
        share = statistics.median(each['cpu_seconds'] / each['seconds'] for each in found[name]['repeats'])
        ratios = [f'{middle / rate[other][0]:.2f}' for other in against]
        rows.append([name, f'{middle:,.0f}', f'{low:,.0f} .. {high:,.0f}', f'{share:.2f}', *ratios])
    columns = ['update', 'tokens/s', 'range', 'CPU/wall', *(f'x {name}' for name in against)]
    show(f'{ROWS} x {LENGTH} tokens, cores {arguments.cores}, {arguments.repeats} repeats', columns, rows)
    write(arguments.out, {'cores': arguments.cores, 'arms': found})


if __name__ == '__main__':
    main()
