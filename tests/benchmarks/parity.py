"""How near every family computes to transformers, as the table of the README.

    python -m tests.benchmarks.parity [OUT.json]

Run it from the project's folder, with torch and transformers installed. The models are small, random and made on the
spot (tests/models/hugging_face: made.py, and made_t5.py for the encoder-decoders, whose prompts are padded and whose
completions are placed). Logits: the largest absolute difference in float32, in parts of the largest logit. Greedy: how
many of 64 tokens are the same in every row. Round trip: whether directory -> ours -> directory leaves every tensor as
it was, to the bit.
"""

import argparse
import os
import pathlib
import tempfile
from types import ModuleType
from typing import Any


def measure(made: ModuleType, parity: ModuleType, name: str, checks: tuple[str, ...]) -> dict[str, Any]:
    """Every check of one case.

    Args:
      made: the module that makes, saves and reads it.
      parity: the module that compares.
      name: of the case.
      checks: of the logits.
    """
    from safetensors.numpy import load_file

    from t5x_selfimprove.models import hugging_face

    with tempfile.TemporaryDirectory() as folder:
        saved, again = pathlib.Path(folder, 'theirs'), pathlib.Path(folder, 'ours')
        ours, theirs = made.read(made.save(name, saved)), made.make(name)
        hugging_face.write_model(ours, again, source=saved)
        one, other = (load_file(each / 'model.safetensors') for each in (saved, again))
    same = one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)
    found = {check: parity.logits_differ(theirs, ours, check) for check in checks}
    return {**found, 'greedy': parity.tokens_equal(theirs, ours), 'round trip': same}


def markdown(found: dict[str, dict[str, Any]], checks: tuple[str, ...], steps: int) -> str:
    """The table."""
    head = ['family', *(f'logits, {check}' for check in checks), f'greedy, of {steps}', 'round trip']
    rows = [head, ['---', *['---:'] * (len(head) - 2), '---']]
    for name, one in found.items():
        cells = [f'{one[check]:.1e}' for check in checks]
        rows.append([name, *cells, str(one['greedy']), 'to the bit' if one['round trip'] else 'differs'])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def main() -> None:
    """Measures every family, prints the table, writes the file if one is named."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.parity', usage=__doc__)
    parser.add_argument('out', nargs='?')
    asked = parser.parse_args()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from tests.benchmarks.timing import write
    from tests.models.hugging_face import made, made_t5, parity, parity_t5

    found = {}
    for maker, comparer in ((made, parity), (made_t5, parity_t5)):
        found |= {name: measure(maker, comparer, name, parity.CHECKS) for name in maker.CASES}
    print(markdown(found, parity.CHECKS, parity.STEPS))
    versions = {package.__name__: package.__version__ for package in (made.torch, made.transformers)}
    if asked.out:
        write(asked.out, {'cases': found, 'versions': versions})


if __name__ == '__main__':
    main()
