"""Compiling for a pod beforehand: chips, the abstract program, what it costs, and what to change where it does not fit.

chips        the TPUs that libtpu compiles for, and what a roofline needs to know of them
program      a run's round as shapes and shardings, compiled
hlo          the text of the compiled program, and how often its loops go round
counting     operations and bytes of single instructions
collectives  who exchanges what with whom
walking      all of it summed by phase
knobs        other settings to try
command      the command `precompile`
"""

from t5x_selfimprove.precompile.command import Precompile

__all__ = ['Precompile']
