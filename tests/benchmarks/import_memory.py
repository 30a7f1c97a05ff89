"""Host memory that reading a Hugging Face directory takes beside the model itself.

    python -m tests.benchmarks.import_memory OUT.json [--layers=24]

Run it from the project's folder, on Linux. It writes a checkpoint of random bfloat16 numbers with the shapes of Qwen 3
0.6B, reads it in processes of their own, and takes the peak of the resident memory (VmHWM, mapped files included) less
what was resident before and less the model. On a CPU the device's own copy of a tensor is resident too, so the figure
is an upper bound of what the host holds beside an accelerator. It must stay within the largest tensor plus 10 %.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

MEGA = 1e6
WAYS = {
    'bfloat16 parameters': ('bfloat16', 1),
    'float32 parameters': ('float32', 1),
    'float32 parameters, 4 devices': ('float32', 4),
}


def config_of(layers: int) -> Any:
    """The shapes of Qwen 3 0.6B, with fewer layers where asked for."""
    from t5x_selfimprove.models.config import Rope, TransformerConfig

    return TransformerConfig(
        width=1024,
        layers=layers,
        heads=16,
        kv_heads=8,
        head_size=128,
        feed_forward=3072,
        rope=Rope(1e6),
        qk_norm=True,
        embedding_rows=151936,
    )


def make(folder: pathlib.Path, layers: int) -> None:
    """Writes the checkpoint, layer by layer in files of their own."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file

    from t5x_selfimprove.models import hugging_face
    from t5x_selfimprove.models.hugging_face import names
    from t5x_selfimprove.models.hugging_face.importing import needed
    from t5x_selfimprove.models.hugging_face.stored import INDEX, shards

    config = config_of(layers)
    family = hugging_face.family_of(config)
    model = jax.eval_shape(lambda: config.create(1, jax.random.key(0)))
    shapes = {
        part.name: part.layout.whole_shape
        for group in needed(model, names.table_of(family.architecture)).values()
        for part in group
    }
    files = shards({name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}, 200_000_000)
    generator = np.random.default_rng(0)
    for file, group in files.items():
        draws = {name: generator.standard_normal(shapes[name], np.float32).astype(jnp.bfloat16) for name in group}
        save_file(draws, folder / file, {'format': 'pt'})
    places = {name: file for file, group in files.items() for name in group}
    (folder / INDEX).write_text(json.dumps({'weight_map': places}), encoding='utf-8')
    (folder / 'config.json').write_text(json.dumps(family.values(config)), encoding='utf-8')


def resident(field: str) -> int:
    """Bytes of this process: VmRSS, VmHWM."""
    status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def read(folder: pathlib.Path, dtype: str, devices: int) -> dict[str, float]:
    """Reads the checkpoint once to compile, and once to measure."""
    import gc

    import jax

    jax.config.update('jax_num_cpu_devices', devices)
    from t5x_selfimprove.models import hugging_face, parameters
    from t5x_selfimprove.models.hugging_face.stored import stored_tensors
    from t5x_selfimprove.partitioning import LEARNING, MeshShape

    config = hugging_face.of_directory(str(folder), parameter_dtype=dtype)
    like = jax.eval_shape(lambda: config.create(1, jax.random.key(0)))
    shardings = parameters.shardings(like, MeshShape(data=1, fsdp=devices).build(), LEARNING)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
    model = jax.block_until_ready(hugging_face.read_model(folder, like))
    del model
    gc.collect()
    before = resident('VmRSS')
    pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')  # the peak starts anew
    model = jax.block_until_ready(hugging_face.read_model(folder, like))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    largest = max(tensor.nbytes for tensor in stored_tensors(folder).values())
    beside = resident('VmHWM') - before - size
    return {'model': size, 'largest': largest, 'beside': beside, 'share': beside / largest, 'before': before}


def apart(folder: pathlib.Path, *words: str) -> str:
    """Runs this file in a process of its own; what it printed last."""
    command = [sys.executable, '-m', 'tests.benchmarks.import_memory', str(folder), *words]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return (done.stdout.splitlines() or [''])[-1]


def main() -> None:
    """Makes the checkpoint, measures every way, prints the table, writes the file."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.import_memory', usage=__doc__)
    parser.add_argument('out')
    parser.add_argument('--layers', type=int, default=24)
    parser.add_argument('--make', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--read', nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make(pathlib.Path(asked.out), asked.layers)
        return
    if asked.read:
        print(json.dumps(read(pathlib.Path(asked.out), asked.read[0], int(asked.read[1]))))
        return
    from tests.benchmarks.timing import show, write

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        apart(folder, '--make', f'--layers={asked.layers}')
        found = {way: json.loads(apart(folder, '--read', *map(str, kind))) for way, kind in WAYS.items()}
    rows = [
        [way, *(f'{one[field] / MEGA:,.0f}' for field in ('model', 'largest', 'beside')), f'{one["share"]:.2f}']
        for way, one in found.items()
    ]
    show(
        'Reading a Hugging Face directory (MB)',
        ['', 'model', 'largest tensor in the files', 'peak beside the model', 'in largest tensors'],
        rows,
    )
    write(asked.out, {'config': dataclasses.asdict(config_of(asked.layers)), 'ways': found})


if __name__ == '__main__':
    main()
