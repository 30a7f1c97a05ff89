"""Tokens a second of one optimizer update, beside the same update in PyTorch with transformers and in Tunix.

    python -m tests.benchmarks.train_step [OUT.json] [--peers-python=PYTHON] [--repeats=3] [--cores 0] [--arms ...]

A Qwen3 of 8 layers (width 512, 8 heads, 4 key/value heads, feed-forward 1,536, vocabulary 32,000, tied: 41.6 M
parameters) makes one AdamW update, gradients clipped, on 32 rows of 256 tokens. Every arm is a process of its own on
the same cores, and they take turns (`turns`). PyTorch and Tunix run in `--peers-python`, an interpreter that has the
extra 'peers' (Tunix wants versions of its own), else in this one; an arm whose packages are not there is left out with
the reason. CPU/wall well below the number of cores: something else ran on them, and tokens by CPU second say more than
tokens by second. Memory: up to 12 GB for an arm.
"""

import argparse
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from t5x_selfimprove.main import CPU_FLAG
from tests.benchmarks.turns import YNNPACK_PRODUCTS, Arm, cpu_share, middle, spread, take_turns, work

MODULE = 'tests.benchmarks.train_step'
ROWS, LENGTH, VOCABULARY = 32, 256, 32_000
SIZES = {'width': 512, 'layers': 8, 'heads': 8, 'kv_heads': 4, 'head_size': 64, 'feed_forward': 1536}
PEAK, BETA, DECAY, CLIP = 1e-3, 0.98, 0.1, 1.0
OURS = {
    'float32': {},
    'float32, layers recomputed': {'remat': 'full'},
    'float32, layers but their matrix products recomputed': {'remat': 'dots'},
    'bfloat16 products': {'dtype': 'bfloat16'},
    'bfloat16 products by YNNPACK': {'dtype': 'bfloat16'},
    'bfloat16 products by YNNPACK, layers recomputed': {'dtype': 'bfloat16', 'remat': 'full'},
    'bfloat16 products by YNNPACK, layers but their products recomputed': {'dtype': 'bfloat16', 'remat': 'dots'},
}
TORCH = {'PyTorch float32': False, 'PyTorch bfloat16 autocast': True}
TUNIX = {'Tunix float32': 'NONE', 'Tunix float32, layers recomputed': 'DECODER'}
PEERS = {**TORCH, **TUNIX}


def batch() -> np.ndarray:
    """The tokens of all arms, int32[ROWS, LENGTH]."""
    return np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)


class Update:
    """An arm that is ready: every call makes one update."""

    def __init__(self, update: Callable[[], float], compiled: Any = None, **facts: Any):
        """Makes the first update, which may compile; `compiled`: the program, where there is one to look at."""
        self.update, self.compiled, self.facts = update, compiled, {**facts, 'first_loss': update()}

    def __call__(self) -> dict[str, Any]:
        """Makes another."""
        return {'loss': self.update()}


def our_arm(fields: dict[str, str]) -> Update:
    """The update of this project."""
    import jax
    import jax.numpy as jnp

    from t5x_selfimprove.improve import new_state
    from t5x_selfimprove.learning.lessons import Packing
    from t5x_selfimprove.learning.optimizers import AdamW, Schedule
    from t5x_selfimprove.learning.supervised import Supervised
    from t5x_selfimprove.models.config import TransformerConfig
    from t5x_selfimprove.records import Examples

    config = TransformerConfig(**SIZES, qk_norm=True, tied=True, **fields)
    optimizer = AdamW(Schedule(PEAK, 0, 'constant'), b2=BETA, weight_decay=DECAY, clip=CLIP)
    learner = Supervised(Packing(LENGTH), optimizer, steps=1, batch_rows=ROWS)
    state = jax.jit(lambda: new_state(config.create(VOCABULARY, jax.random.key(0)), learner, 0, False))()
    full = jnp.full(ROWS, LENGTH)
    examples = Examples(jnp.asarray(batch()), jnp.ones(ROWS, jnp.int32), full, jnp.ones(ROWS))
    lessons, _ = learner.packing(examples, jax.random.key(2))
    step = jax.jit(learner.update, donate_argnums=0).lower(state, lessons, jax.random.key(3)).compile()
    kept = [state]

    def update() -> float:
        kept[0], metrics = step(kept[0], lessons, jax.random.key(3))
        return float(metrics['loss'].total / metrics['loss'].weight)

    temporary = step.memory_analysis().temp_size_in_bytes
    return Update(update, step, temporary_bytes=temporary, **versions('jax', 'flax'))


def torch_arm(autocast: bool) -> Update:
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
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, betas=(0.9, BETA), weight_decay=DECAY)
    tokens = torch.from_numpy(batch().astype(np.int64))

    def update() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return Update(update, **versions('torch', 'transformers'))


def tunix_arm(remat: str) -> Update:
    """The same update by Tunix: its Qwen 3 and its PeftTrainer, which without adapters trains everything."""
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3
    from tunix.sft import peft_trainer, utils

    config = qwen3.ModelConfig(
        num_layers=SIZES['layers'],
        vocab_size=VOCABULARY,
        embed_dim=SIZES['width'],
        hidden_dim=SIZES['feed_forward'],
        num_heads=SIZES['heads'],
        head_dim=SIZES['head_size'],
        num_kv_heads=SIZES['kv_heads'],
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        remat_config=qwen3.RematConfig[remat],
    )
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(PEAK, 0.9, BETA, weight_decay=DECAY))
    settings = peft_trainer.TrainingConfig(eval_every_n_steps=1_000_000)
    trainer = peft_trainer.PeftTrainer(qwen3.Qwen3(config, rngs=nnx.Rngs(0)), optimizer, settings)
    trainer.is_managed_externally = True  # `train` is called for every update, and does not close the trainer
    tokens = jnp.asarray(batch())
    mask = jnp.ones(tokens.shape, bool)
    facts = {'positions': utils.build_positions_from_mask(mask), 'attention_mask': utils.make_causal_attn_mask(mask)}
    trainer = trainer.with_gen_model_input_fn(
        lambda given: {'input_tokens': given.input_tokens, 'input_mask': given.input_mask, **facts}
    )
    given = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)

    def update() -> float:
        trainer.train([given])
        return float(trainer._prev_buffered_train_metrics.loss)  # the trainer hands losses to its loggers alone

    return Update(update, **versions('google-tunix', 'jax', 'flax'))


def versions(*names: str) -> dict[str, dict[str, str]]:
    """The versions of packages, as a fact of an arm."""
    return {'packages': {name: importlib.metadata.version(name) for name in names}}


def make(name: str) -> Update:
    """The arm of a name. Raises ImportError where a package of it is not there."""
    if name in TUNIX:
        return tunix_arm(TUNIX[name])
    return torch_arm(TORCH[name]) if name in TORCH else our_arm(OURS[name])


def arm(name: str, peers_python: str) -> Arm:
    """The process of an arm. All have memory in huge pages, which is worth a third and more to each of them."""
    environment = {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
    if 'XLA_FLAGS' not in os.environ and name in OURS:
        environment['XLA_FLAGS'] = CPU_FLAG + (YNNPACK_PRODUCTS if 'YNNPACK' in name else '')
    return Arm(name, MODULE, peers_python if name in PEERS else sys.executable, environment)


def main() -> None:
    """Runs the arms in turn; prints a table, and writes JSON if a file is named."""
    parser = argparse.ArgumentParser(prog=f'python -m {MODULE}', usage=__doc__)
    parser.add_argument('out', nargs='?')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--arms', nargs='+', choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument('--peers-python', default=sys.executable)
    parser.add_argument('--work', choices=[*OURS, *PEERS])
    asked = parser.parse_args()
    if asked.work:
        return work(functools.partial(make, asked.work))
    report(take_turns([arm(name, asked.peers_python) for name in asked.arms], asked.cores, asked.repeats), asked)


def report(found: dict[str, dict[str, Any]], asked: argparse.Namespace) -> None:
    """Prints the table, with ratios against the peers, and writes the file."""
    from tests.benchmarks.timing import show, write

    ran = {name: facts for name, facts in found.items() if 'left out' not in facts}
    rates = {name: ROWS * LENGTH / middle(facts, 'seconds') for name, facts in ran.items()}
    against = [name for name in ('PyTorch float32', 'PyTorch bfloat16 autocast', *TUNIX) if name in rates]
    rows = []
    for name, facts in ran.items():
        slow, fast = (ROWS * LENGTH / seconds for seconds in reversed(spread(facts, 'seconds')))
        by_cpu = ROWS * LENGTH / middle(facts, 'cpu_seconds')
        shares = [f'{cpu_share(facts):.2f}', f'{by_cpu:,.0f}', f'{middle(facts, "peak_memory") / 1e9:.1f}']
        ratios = [f'{rates[name] / rates[other]:.2f}' for other in against]
        rows.append([name, f'{rates[name]:,.0f}', f'{slow:,.0f} .. {fast:,.0f}', *shares, *ratios])
    columns = ['update', 'tokens/s', 'range', 'CPU/wall', 'by CPU s', 'peak GB', *(f'x {name}' for name in against)]
    show(f'{ROWS} x {LENGTH} tokens, cores {asked.cores}, {asked.repeats} repeats', columns, rows)
    for name in found.keys() - ran.keys():
        print(f'left out: {name}: {found[name]["left out"]}')
    if asked.out:
        write(asked.out, {'cores': asked.cores, 'arms': found})


if __name__ == '__main__':
    main()
