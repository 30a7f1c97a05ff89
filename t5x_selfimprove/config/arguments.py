"""The command line: a command, gin files, bindings."""

import dataclasses
import difflib
from collections.abc import Collection, Sequence

from t5x_selfimprove.config.statements import COMMAND_LINE, ConfigError, Place, Problem, did_you_mean
from t5x_selfimprove.config.table import IMPLIED, ROOTS

# Different in each process of a run, and so no part of the configuration.
PROCESS_FLAGS = {
    '--coordinator': 'JAX_COORDINATOR_ADDRESS',
    '--processes': 'JAX_NUM_PROCESSES',
    '--process': 'JAX_PROCESS_ID',
}

USAGE = 'python -m t5x_selfimprove COMMAND --gin_file=a.gin --gin.NAME=value --gin.part.Class.field=value'


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What was asked for. `command` is empty and `help` set where only help was."""

    command: str
    files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()  # 'NAME=value', as written; `build` knows how to read them
    words: tuple[str, ...] = ()  # what follows a command that takes no gin files
    process: tuple[tuple[str, str], ...] = ()  # environment variables that say which process this is, and their values
    help: bool = False


def parse_arguments(argv: Sequence[str], plain: Collection[str] = ('report', 'samples')) -> Arguments:
    """Reads the arguments after the program's name. Values may follow their flag after a space.

    Args:
      argv: as sys.argv[1:].
      plain: commands that take words instead of gin files and bindings.

    Raises:
      ConfigError: an unknown command or flag, a flag without a value, a stray word; all at once.
    """
    commands = [*ROOTS, *plain]
    rest = [word for word in argv if word not in ('-h', '--help')]
    asked = len(rest) < len(argv)
    if not rest or rest[0].startswith('-'):
        if asked:
            return Arguments('', help=True)
        raise ConfigError([Problem('which command?', help=f'one of {", ".join(commands)}\n{USAGE}')])
    command, *rest = rest
    if command not in commands:
        help = did_you_mean(command, commands, f'one of {", ".join(commands)}')
        raise ConfigError([Problem(f'there is no command {command}', help=help)])
    files, bindings, words, process, problems = [], [*IMPLIED.get(command, ())], [], [], []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition('=')
        known = flag == '--gin_file' or flag in PROCESS_FLAGS or (flag.startswith('--gin.') and flag != '--gin.')
        if known and command not in plain:
            if not equals and rest and not rest[0].startswith('--'):
                value = rest.pop(0)
            if not value:
                problems.append(_problem(word, f'{flag} has no value', f'write {flag}=value'))
            elif flag == '--gin_file':
                files.append(value)
            elif flag in PROCESS_FLAGS:
                process.append((PROCESS_FLAGS[flag], value))
            else:
                bindings.append(f'{flag.removeprefix("--gin.")}={value}')
        elif word.startswith('-'):
            problems.append(_unknown(word, flag, command, plain))
        elif command in plain:
            words.append(word)
        else:
            problems.append(_problem(word, f'{word} stands alone', _meant(word)))
    if problems:
        raise ConfigError(problems)
    return Arguments(command, tuple(files), tuple(bindings), tuple(words), tuple(process), asked)


def _problem(word: str, what: str, help: str) -> Problem:
    return Problem(what, Place(COMMAND_LINE, 0, word), help)


def _meant(word: str) -> str:
    if word.endswith('.gin'):
        return f'did you mean --gin_file={word}?'
    return f'did you mean --gin.{word}?' if '=' in word else USAGE


def _unknown(word: str, flag: str, command: str, plain: Collection[str]) -> Problem:
    """A flag that there is not: --ginfile, --gin_bindings=..., --STEPS=5, -gin_file."""
    bare = flag.lstrip('-')
    if command in plain:
        return _problem(word, f'{command} takes no flag {flag}', f'write {command} RUN_DIR')
    if difflib.SequenceMatcher(None, bare.casefold(), 'gin_file').ratio() > 0.75:
        return _problem(word, f'there is no flag {flag}', 'did you mean --gin_file?')
    name = bare.removeprefix('gin').lstrip('._-') if bare.startswith('gin') else bare
    name = 'NAME' if name in ('bindings', 'binding', 'param', 'bind', '') else name
    return _problem(word, f'there is no flag {flag}', f'did you mean --gin.{name}=...?')
