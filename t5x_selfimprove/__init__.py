"""t5x_selfimprove: language models that improve themselves, in one compiled JAX program."""

__version__ = '0.1.0'
