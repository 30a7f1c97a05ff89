"""Products of a few rows with weights that stay as they are, on a CPU: float32, by a kernel of our own (native).

In decoding every token's step multiplies some dozens of rows with all weights. XLA packs the weights for its kernels
anew in each product; here they are packed once a round, [inputs, outputs] as panels of neighbouring outputs, [panels,
inputs, width], which the kernel reads from front to back.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import native


def pack(matrix: Float32[Array, '*layers inputs outputs']) -> Float32[Array, '*layers panels inputs width']:
    """The panels of a matrix, of weights or of keys; the last is filled up with zeros."""
    *layers, inputs, outputs = matrix.shape
    width = native.library().width
    fill = [(0, 0)] * (len(layers) + 1) + [(0, -outputs % width)]
    return jnp.moveaxis(jnp.pad(matrix, fill).reshape(*layers, inputs, -1, width), -2, -3)


def product(
    x: Float32[Array, 'rows inputs'], panels: Float32[Array, 'panels inputs width'], outputs: int
) -> Float32[Array, 'rows {outputs}']:
    """`x` times the matrix that was packed. The same to the bit for a row in whatever batch it is.

    On a mesh every device multiplies its own rows; all of them where these do not divide by the devices.

    Args:
      x: rows.
      panels: from `pack`.
      outputs: columns that the matrix had.
    """

    def mine(x: jax.Array, panels: jax.Array) -> jax.Array:
        return native.call('packed_product', jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32), x, panels)

    return partitioning.by_rows(mine, (x,), (panels,))
