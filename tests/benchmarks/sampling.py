"""Our sampler beside what a user could pick instead, on the same model, cores and threads, in one run.

    python -m tests.benchmarks.sampling OUT.json [--peers-python=...] [--cores 0] [--repeats=3] [--workloads S S2]
        [--arms ...] [--calls=1] [--field slots=32]

Run it from the project's folder, on a machine that does nothing else. A random Qwen3 of 8 layers (width 512, 8 heads,
4 key/value heads of size 64, feed-forward 1,536, vocabulary 32,000, tied, float32: 41.6 M parameters) is written once
as a Hugging Face directory; every arm is a process that loads it, and they take turns, repeat by repeat.

    S    a prefix of 768 tokens common to all, 4 questions of 64 tokens, 16 paths each, 128 tokens a path
    S2   no common prefix, 4 questions of 64 tokens, 16 paths each, lengths spread evenly over 16 .. 256

Temperature 0.7. No path ends by itself: our sampler is told to draw no end of text (`min_tokens`), transformers and
Tunix are given none that is a token, the model has none in llama.cpp. S2: our sampler has a `limit` for each path,
transformers a stopping criterion, in llama.cpp a path leaves the batch; Tunix has no such thing but the end of text, so
that all its paths run to 256, of which the lengths wanted are counted. Ours runs as `python -m t5x_selfimprove` does,
with its own kernels (models/native). Tokens a second are those of all paths by the time of the whole call, prompts read
included, compilation not. The peers' packages may be in an interpreter of their own: torch==2.13.0 (a build for CPUs)
first, then those of the extra `peers`. An arm whose package is missing is left out, with the reason. Memory: 16 GB for
all arms together, Tunix 10 of them.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from typing import Any

from tests.benchmarks import turns
from tests.benchmarks.sampling_workloads import WORKLOADS, Sizes, chosen

OURS, PRODUCTS, SAVE = 'ours', 'products', 'save the model'
PEERS = ('transformers', 'transformers, prefix reused', 'Tunix', 'llama.cpp, unified', 'llama.cpp, streams')
ARMS = (PRODUCTS, OURS, *PEERS)
# malloc takes huge pages and keeps what it has: for programs that free and take large arrays at every step or call.
KEEPING = ':'.join(
    [
        'glibc.malloc.mmap_threshold=17179869184',
        'glibc.malloc.trim_threshold=17179869184',
        'glibc.malloc.top_pad=268435456',
        'glibc.malloc.hugetlb=1',
    ]
)


def arm(name: str, python: str, options: list[str], cores: int = 1) -> turns.Arm:
    """The process of an arm. transformers as people call it has malloc as it comes; the others what helps them.

    XLA's products are measured by what is faster: on an AMD EPYC (Zen 4) those of decoding reach by YNNPACK 80 GFLOP/s
    on one core and 155 on two, by Eigen 108 and 140.
    """
    from t5x_selfimprove.main import CPU_FLAG

    environment = {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': KEEPING, 'TOKENIZERS_PARALLELISM': 'false'}
    if name not in PEERS:
        products = turns.YNNPACK_PRODUCTS if name == PRODUCTS and cores > 1 else ''
        environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {CPU_FLAG}{products}'.strip()
    if name == 'transformers':
        environment['GLIBC_TUNABLES'] = ''
    own = python if name in PEERS else sys.executable
    return turns.Arm(name, 'tests.benchmarks.sampling', own, environment, options)


def make(asked: argparse.Namespace) -> turns.Ready:
    """The arm of this process."""
    workload = chosen(asked.workloads[0], asked.shrink)
    if asked.work == SAVE:
        from tests.benchmarks.sampling_ours import save_model

        save_model(Sizes(), asked.directory)
        raise SystemExit
    if asked.work == PRODUCTS:
        from tests.benchmarks.products import Products

        return Products(Sizes(), workload.rows)
    if asked.work == OURS:
        from tests.benchmarks.sampling_ours import Ours

        return Ours(asked.directory, workload, **fields(asked.field))
    from tests.benchmarks.sampling_peers import ARMS

    return ARMS[asked.work](asked.directory, workload)


def fields(pairs: list[str]) -> dict[str, Any]:
    """Fields of our sampler from NAME=VALUE, where a value that is no number is a text."""

    def read(value: str) -> Any:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
        return value

    return {name: read(value) for name, value in (pair.split('=', 1) for pair in pairs)}


def measure(asked: argparse.Namespace, name: str, directory: str) -> dict[str, Any]:
    """All arms on one workload."""
    options = ['--workloads', name, '--directory', directory, '--shrink', str(asked.shrink)]
    options += ['--calls', str(asked.calls)]
    options += [word for pair in asked.field for word in ('--field', pair)]
    arms = [arm(each, asked.peers_python, options, len(asked.cores)) for each in asked.arms]
    return turns.take_turns(arms, asked.cores, asked.repeats)


def main() -> None:
    """Runs the arms in turn, workload by workload; prints a table of each and writes JSON."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.sampling', usage=__doc__)
    parser.add_argument('out', nargs='?', default='sampling.json')
    parser.add_argument('--peers-python', default=sys.executable)
    parser.add_argument('--cores', type=int, nargs='+', default=[0])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--calls', type=int, default=1, help='of a turn, the last of which is measured')
    parser.add_argument('--workloads', nargs='+', choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--field', action='append', default=[])
    parser.add_argument('--shrink', type=int, default=1, help='divides the lengths and the number of paths: for trials')
    parser.add_argument('--work', choices=[*ARMS, SAVE], help=argparse.SUPPRESS)
    parser.add_argument('--directory', help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return turns.work(lambda: make(asked), asked.calls)
    from tests.benchmarks.sampling_report import report
    from tests.benchmarks.timing import write

    found = {'cores': asked.cores, 'fields': asked.field, 'calls': asked.calls, 'shrink': asked.shrink, 'workloads': {}}
    with tempfile.TemporaryDirectory() as directory:
        # Not in this process: it has no threads that its arms could inherit.
        save = arm(SAVE, sys.executable, ['--directory', directory])
        subprocess.run(save.command, env={**os.environ, **save.environment}, check=True)
        for name in asked.workloads:
            arms = measure(asked, name, directory)
            workload = chosen(name, asked.shrink)
            found['workloads'][name] = report(workload, Sizes(), arms, asked.cores)
            write(asked.out, found)


if __name__ == '__main__':
    main()
