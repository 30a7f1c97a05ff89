"""The table and the facts of `sampling` from what its arms told."""

from collections.abc import Sequence
from typing import Any

from tests.benchmarks import turns
from tests.benchmarks.sampling_workloads import Sizes, Workload
from tests.benchmarks.timing import show

OURS, PRODUCTS = 'ours', 'products'
COLUMNS = ('arm', 'tokens/s', 'range', 'ours is', 's', 'CPU/wall', 'compile s', 'peak MB', '% of products', '% of FMA')
SAME_LOGITS = 1e-3  # most that an arm's logits may differ from ours: llama.cpp keeps its cache in float16


def report(workload: Workload, sizes: Sizes, arms: dict[str, dict], cores: Sequence[int]) -> dict[str, Any]:
    """Prints the table of a workload; returns all facts."""
    rates = machine_rates(arms.get(PRODUCTS, {}))
    flops = workload.flops(sizes)
    facts = {name: facts_of(arm, workload, flops, rates) for name, arm in arms.items() if name != PRODUCTS}
    measured = {name: each for name, each in facts.items() if 'left out' not in each}
    ours = measured.get(OURS)
    rows = []
    for name, each in measured.items():
        each['ours is'] = None if ours is None else ours['tokens_per_second'] / each['tokens_per_second']
        rows.append(row(name, each))
    title = (
        f'{workload.name}: {workload.generated:,} tokens of {workload.rows} paths, prefix {workload.prefix}, '
        f'cores {list(cores)}; the least work is {flops / 1e12:.3f} TFLOP'
    )
    show(title, COLUMNS, rows)
    print('; '.join(f'{name} {rate / 1e9:.0f} GFLOP/s' for name, rate in rates.items()))
    for name, each in facts.items():
        if 'left out' in each:
            print(f'left out: {name}: {each["left out"]}')
    check_logits(measured)
    return {'tokens': workload.generated, 'flops': flops, 'rates': rates, 'products': arms.get(PRODUCTS), 'arms': facts}


def machine_rates(products: dict[str, Any]) -> dict[str, float]:
    """Median of each rate of the arm `products`; none where it was not run."""
    if 'repeats' not in products:
        return {}
    turned = [repeat['rates'] for repeat in products['repeats']]
    return {name: turns.middle({'repeats': turned}, name) for name in turned[0]}


def facts_of(arm: dict[str, Any], workload: Workload, flops: float, rates: dict[str, float]) -> dict[str, Any]:
    """What an arm told and what follows from it."""
    if 'left out' in arm:
        return arm
    seconds = turns.middle(arm, 'seconds')
    least, most = turns.spread(arm, 'seconds')
    compiling = arm.get('compile_seconds', arm.get('first_call_seconds', seconds) - seconds)
    known = {name: flops / seconds / rates[name] for name in ('decode products', 'multiply-adds') if name in rates}
    return {
        **arm,
        'seconds': seconds,
        'tokens_per_second': workload.generated / seconds,
        'range': [workload.generated / most, workload.generated / least],
        'cpu_share': turns.cpu_share(arm),
        'compile_seconds': compiling,
        'peak_memory': turns.spread(arm, 'peak_memory')[1],
        'shares': known,
    }


def row(name: str, facts: dict[str, Any]) -> list[str]:
    """A line of the table."""
    low, high = facts['range']
    shares = [facts['shares'].get(each) for each in ('decode products', 'multiply-adds')]
    return [
        name,
        f'{facts["tokens_per_second"]:,.0f}',
        f'{low:,.0f} .. {high:,.0f}',
        '-' if facts['ours is'] is None else f'x {facts["ours is"]:.2f}',
        f'{facts["seconds"]:.2f}',
        f'{facts["cpu_share"]:.2f}',
        f'{facts["compile_seconds"]:.1f}',
        f'{facts["peak_memory"] / 1e6:,.0f}',
        *('-' if share is None else f'{100 * share:.1f}' for share in shares),
    ]


def check_logits(measured: dict[str, dict[str, Any]]) -> None:
    """Says how far the arms' logits after the first prompt are from ours, and which compute another model."""
    if OURS not in measured:
        return
    right = measured[OURS]['logits']
    for each in measured.values():
        each['logits differ by'] = max(abs(one - other) for one, other in zip(each['logits'], right, strict=True))
    apart = ', '.join(f'{name} {each["logits differ by"]:.1e}' for name, each in measured.items() if name != OURS)
    if apart:
        print(f'largest difference of a logit after the first prompt from ours: {apart}')
    wrong = [name for name, each in measured.items() if each['logits differ by'] > SAME_LOGITS]
    if wrong:
        print(f'NOT THE SAME MODEL: {", ".join(wrong)}: more than {SAME_LOGITS}')
