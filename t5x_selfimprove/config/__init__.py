"""Configuration: gin text in, one frozen value out. Strict, and gone before the first trace.

gin's syntax and scopes, with these differences, all of them to keep mistakes from passing silently:

* Parts are named in one table (`TABLE`); gin files import nothing.
* Unknown names, wrong types, values out of range, missing values and files, bindings and macros that nobody reads are
  errors, reported all at once, each with file, line and the nearest right name.
* A macro stands for its value and changes no scope. Scopes are not nested.
* Includes stand above the first binding; a file is read once; in one file nothing is bound twice.
* On the command line, plain words and paths need no quotes.
"""

from t5x_selfimprove.config.arguments import USAGE, Arguments, parse_arguments
from t5x_selfimprove.config.building import Built, build
from t5x_selfimprove.config.statements import ConfigError, Problem
from t5x_selfimprove.config.table import ROOTS, TABLE
from t5x_selfimprove.config.writing import differences, effective

__all__ = [
    'ROOTS',
    'TABLE',
    'USAGE',
    'Arguments',
    'Built',
    'ConfigError',
    'Problem',
    'build',
    'differences',
    'effective',
    'parse_arguments',
]
