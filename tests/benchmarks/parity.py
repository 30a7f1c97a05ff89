"""How near every family computes to transformers, as the table of the README.

    python -m tests.benchmarks.parity OUT.json

Run it from the project's folder, with torch and transformers installed. The models are small, random and made on the
spot (tests/models/hugging_face/made.py). Logits: the largest absolute difference in float32, in parts of the largest
logit. Greedy: how many of 64 tokens are the same in every row. Round trip: whether directory -> ours -> directory
leaves every tensor as it was, to the bit.
"""

import argparse
import os
import pathlib
import tempfile
from typing import Any


def round_trip(name: str) -> bool:
    """Whether the tensors of a case come back to the bit."""
    from safetensors.numpy import load_file

    from t5x_selfimprove.models import hugging_face
    from tests.models.hugging_face import made

    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = pathlib.Path(folder, 'theirs'), pathlib.Path(folder, 'ours')
        made.save(name, theirs)
        hugging_face.write_model(made.read(theirs), ours, source=theirs)
        one, other = (load_file(each / 'model.safetensors') for each in (theirs, ours))
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


def markdown(found: dict[str, dict[str, Any]], checks: tuple[str, ...], steps: int) -> str:
    """The table."""
    head = ['family', *(f'logits, {check}' for check in checks), f'greedy, of {steps}', 'round trip']
    rows = [head, ['---', *['---:'] * (len(head) - 2), '---']]
    for name, one in found.items():
        cells = [f'{one[check]:.1e}' for check in checks]
        rows.append([name, *cells, str(one['greedy']), 'to the bit' if one['round trip'] else 'differs'])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def main() -> None:
    """Measures every family, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.parity', usage=__doc__)
    parser.add_argument('out')
    asked = parser.parse_args()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from tests.benchmarks.timing import write
    from tests.models.hugging_face import made, parity

    found = {name: {**parity.measure(name), 'round trip': round_trip(name)} for name in made.CASES}
    print(markdown(found, parity.CHECKS, parity.STEPS))
    versions = {package.__name__: package.__version__ for package in (made.torch, made.transformers)}
    write(asked.out, {'cases': found, 'versions': versions})


if __name__ == '__main__':
    main()
