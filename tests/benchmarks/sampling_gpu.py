"""Our sampler on one GPU beside transformers, and how near both come to what the GPU can do.

    python -m tests.benchmarks.sampling_gpu OUT.json [--models 0.6B 8B] [--repeats=3] [--questions 4] [--samples 32]

Run it from the project's folder. It needs jax with CUDA, flax, optax, orbax and numpy; transformers and torch with CUDA
for the second arm, which is left out without them. Models of the shapes of Qwen3-0.6B and Qwen3-8B, random, bfloat16. 4
questions of 64 tokens behind a common prefix of 1,024, 32 paths each, 128 tokens a path, none of which ends by itself;
temperature 0.7. The arms are processes that take turns. `--tiny` tries all of it on whatever there is, a CPU too.

The limit. A step of decoding reads every matrix once (layers and output embedding, 2 bytes a number), the keys and
values of the prefix once, of every question once, and of every path what it has drawn so far; it multiplies and adds
each number of the matrices once for each path, and the keys and values each path attends to. It takes no less than the
bytes by the memory bandwidth and no less than the operations by the matrix rate, whichever is longer; the limit of a
call is the sum over its steps, and the operations of reading prefix and questions by the matrix rate. Bandwidth and
matrix rate are measured in the same run, the best of all turns: 1 GiB read and another written, and a product of 8192
x 8192 x 8192 in bfloat16. For transformers the same limit is taken: work that it does and need not do is time lost.
"""

import argparse
import dataclasses
import time
from typing import Any

import numpy as np

from tests.benchmarks import turns
from tests.benchmarks.sampling_workloads import TEMPERATURE, Sizes, Workload

# config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-8B; whether the output embedding is the input embedding.
MODELS = {
    '0.6B': (Sizes(1024, 28, 16, 8, 128, 3072, 151_936), True),
    '8B': (Sizes(4096, 36, 32, 8, 128, 12_288, 151_936), False),
    'tiny': (Sizes(128, 2, 4, 2, 32, 256, 1000), True),
}
LOADED = Workload('GPU', prefix=1024, samples=32)
TINY = Workload('tiny', prefix=32, questions=2, question=8, samples=4, room=8)
BYTES = 2  # of a bfloat16 number
RATES, OURS, TRANSFORMERS = 'rates', 'ours', 'transformers'
ARMS = (RATES, OURS, TRANSFORMERS)


def limit_seconds(workload: Workload, sizes: Sizes, rates: dict[str, float]) -> dict[str, float]:
    """The least time of a call, by the model above.

    Args:
      workload: with paths of one length.
      sizes: of the model.
      rates: `bandwidth` in bytes and `matrix rate` in operations a second.

    Returns:
      Seconds of reading the prompts, of all steps, and of the whole call.
    """
    read = dataclasses.replace(workload, room=1, samples=1)
    reading = read.flops(sizes) / rates['matrix rate']
    cached = BYTES * sizes.kv_numbers
    kept = workload.prefix + workload.questions * workload.question
    start, stepping = workload.prefix + workload.question, 0.0
    for own in range(1, workload.room):  # tokens of its own that each path attends to
        moved = BYTES * sizes.matrix_parameters + cached * (kept + workload.rows * own)
        done = sizes.flops(workload.rows, workload.rows, workload.rows * (start + own))
        stepping += max(moved / rates['bandwidth'], done / rates['matrix rate'])
    return {'reading': reading, 'stepping': stepping, 'call': reading + stepping}


class Rates:
    """What the device can do. A turn measures bandwidth and matrix rate."""

    def __init__(self, small: bool):
        """Compiles; small arrays where it is only tried."""
        import jax
        import jax.numpy as jnp

        self.jax, side, count = jax, 512 if small else 8192, 2**20 if small else 2**29
        self.facts = {'device': jax.devices()[0].device_kind, 'platform': jax.default_backend()}
        matrix = jnp.full((side, side), 1 / side, jnp.bfloat16)
        large = jnp.ones(count, jnp.bfloat16)
        product = lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(jnp.bfloat16)  # noqa: E731
        self.programs = {
            'matrix rate': (jax.jit(product), (matrix, matrix), 2 * side**3),
            'bandwidth': (jax.jit(lambda x: x + 1), (large,), 2 * BYTES * count),
        }
        self()

    def __call__(self) -> dict[str, Any]:
        """Operations and bytes a second, the best of ten each."""
        found = {}
        for name, (program, arguments, count) in self.programs.items():
            taken = []
            for _ in range(10):
                start = time.perf_counter()
                self.jax.block_until_ready(program(*arguments))
                taken.append(time.perf_counter() - start)
            found[name] = count / min(taken)
        return found


class Ours:
    """Our sampler. A turn is the whole call: prompts read, paths drawn."""

    def __init__(self, sizes: Sizes, tied: bool, workload: Workload):
        """Makes the model and compiles."""
        import jax

        from tests.benchmarks.sampling_ours import compiled, config_of

        config = dataclasses.replace(config_of(sizes), tied=tied, dtype='bfloat16', parameter_dtype='bfloat16')
        model = jax.jit(lambda: config.create(sizes.vocabulary, jax.random.key(0)))()
        self.drawing = compiled(model, workload, sizes.vocabulary)
        temporary = self.drawing.temporary_bytes
        self.facts = {'compile_seconds': self.drawing.compile_seconds, 'temporary_bytes': temporary}
        self.facts['packages'] = {'jax': jax.__version__}
        self()

    def __call__(self) -> dict[str, Any]:
        """Draws."""
        return {'tokens': int(np.asarray(self.drawing().mask.sum()))}


class Transformers:
    """`generate` as people call it: the prompts, num_return_sequences = N."""

    def __init__(self, sizes: Sizes, tied: bool, workload: Workload):
        """Makes the model on the GPU, or on the CPU where there is none."""
        from tests.benchmarks.sampling_peers import packages

        self.facts = {'packages': packages('torch', 'transformers'), 'compile_seconds': 0.0}
        import torch
        import transformers

        self.torch, self.workload = torch, workload
        place = 'cuda' if torch.cuda.is_available() else 'cpu'
        config = transformers.Qwen3Config(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head_size,
            intermediate_size=sizes.feed_forward,
            tie_word_embeddings=tied,
            dtype=torch.bfloat16,
        )
        with torch.device(place):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        rows = workload.rows_of(sizes.vocabulary)[:: workload.samples]
        self.prompts = torch.from_numpy(rows.astype(np.int64)).to(place)
        self.facts['device'] = torch.cuda.get_device_name() if place == 'cuda' else place
        self()

    def __call__(self) -> dict[str, Any]:
        """Draws."""
        with self.torch.inference_mode():
            drawn = self.model.generate(
                self.prompts,
                attention_mask=self.torch.ones_like(self.prompts),
                max_new_tokens=self.workload.room,
                num_return_sequences=self.workload.samples,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
        return {'tokens': int(drawn[:, self.prompts.shape[1] :].cpu().numel())}


def make(asked: argparse.Namespace) -> turns.Ready:
    """The arm of this process."""
    sizes, tied = MODELS[asked.models[0]]
    if asked.work == RATES:
        return Rates(asked.tiny)
    arm = Ours if asked.work == OURS else Transformers
    return arm(sizes, tied, workload_of(asked))


def workload_of(asked: argparse.Namespace) -> Workload:
    """What is drawn."""
    if asked.tiny:
        return TINY
    return dataclasses.replace(LOADED, questions=asked.questions, samples=asked.samples)


def measure(asked: argparse.Namespace, model: str) -> dict[str, Any]:
    """All arms with one model; prints their table."""
    from tests.benchmarks.timing import show

    workload, (sizes, _) = workload_of(asked), MODELS[model]
    options = ['--models', model, '--questions', str(asked.questions), '--samples', str(asked.samples)]
    options += ['--tiny'] if asked.tiny else []
    # Arms share the GPU: each takes what it needs and no more.
    environment = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    arms = [turns.Arm(name, 'tests.benchmarks.sampling_gpu', environment=environment, options=options) for name in ARMS]
    found = turns.take_turns(arms, None, asked.repeats)
    if 'left out' in found[RATES]:
        raise SystemExit(f'no rates: {found[RATES]["left out"]}')
    rates = {name: max(repeat[name] for repeat in found[RATES]['repeats']) for name in ('bandwidth', 'matrix rate')}
    least, rows = limit_seconds(workload, sizes, rates), []
    for name in (OURS, TRANSFORMERS):
        facts = found[name]
        if 'left out' in facts:
            print(f'left out: {name}: {facts["left out"]}')
            continue
        seconds, (low, high) = turns.middle(facts, 'seconds'), turns.spread(facts, 'seconds')
        facts |= {'tokens_per_second': workload.generated / seconds, 'share of the limit': least['call'] / seconds}
        ends = f'{workload.generated / high:,.0f} .. {workload.generated / low:,.0f}'
        cells = [f'{facts["tokens_per_second"]:,.0f}', ends, f'{seconds:.3f}', f'{facts["compile_seconds"]:.1f}']
        rows.append([name, *cells, f'{100 * facts["share of the limit"]:.1f}'])
    device = found[RATES]['device']
    title = f'Qwen3-{model} shapes, bfloat16, {workload.rows} paths of {workload.room} tokens, prefix {workload.prefix}'
    show(f'{title}, {device}', ['arm', 'tokens/s', 'range', 's', 'compile s', '% of the limit'], rows)
    print(
        f'limit: {rates["bandwidth"] / 1e9:,.0f} GB/s, {rates["matrix rate"] / 1e12:,.1f} TFLOP/s; prompts '
        f'{1e3 * least["reading"]:.1f} ms, {workload.room - 1} steps {1e3 * least["stepping"]:.1f} ms'
    )
    return {'rates': rates, 'limit_seconds': least, 'arms': found, 'device': device}


def main() -> None:
    """Runs the arms with each model, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampling_gpu', usage=__doc__)
    parser.add_argument('out', nargs='?', default='sampling_gpu.json')
    parser.add_argument('--models', nargs='+', choices=MODELS, default=['0.6B', '8B'])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--questions', type=int, default=LOADED.questions)
    parser.add_argument('--samples', type=int, default=LOADED.samples)
    parser.add_argument('--tiny', action='store_true')
    parser.add_argument('--work', choices=ARMS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return turns.work(lambda: make(asked))
    from tests.benchmarks.timing import write

    models = ['tiny'] if asked.tiny else asked.models
    write(asked.out, {model: measure(asked, model) for model in models})


if __name__ == '__main__':
    main()
