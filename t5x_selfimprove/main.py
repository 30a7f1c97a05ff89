"""The command line: python -m t5x_selfimprove COMMAND ..., the commands as in `HELP`."""

import contextlib
import importlib.metadata
import os
import sys
import traceback
from typing import Any

from t5x_selfimprove import stopping

# Of what jaxlib 0.10 hands to YNNPACK on a CPU only sums gain by it; products are the faster ones elsewhere
# (tests/benchmarks/sampler_batch.py measures both), and with them a prototype of a sampler drew other tokens in large
# batches than in small ones.
CPU_FLAG = '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE'

HELP = """{usage}

  vocabulary   learns the pieces of text that a model reads
  pretrain     trains a new model on examples
  improve      improves a model in place on questions, round after round
  precompile   compiles an improve run for a pod of TPUs that is not there: does it fit, what does a round take
  evaluate     measures the model of a run directory on labelled questions
  sample       asks the model of a run directory questions and shows the vote
  questions    lets the model write new questions, kept where its vote on them is confident
  exemplars    lets the model write the exemplars of a few-shot prompt
  samples      prints or greps the paths that a run has sampled: samples RUN_DIR --help
  export       writes the model of a run directory as a Hugging Face directory
  sweep        runs a command at several settings and seeds, and draws the figure
  report       writes the page of one or more finished runs: report RUN_DIR ...

--gin_file names a configuration (gin/runs holds complete ones; each opens with its command), --gin.NAME=value sets a
value in it. A command that was stopped goes on where it was when it is given again.

On several hosts pretrain, improve and evaluate are given as they are to every process; SLURM, GKE and TPU pods tell
each which one it is, elsewhere --coordinator=HOST:PORT --processes=COUNT --process=NUMBER do. launch/ has scripts.

Exit codes: 0 done; 1 no such samples; 2 a mistake, said in a line; 75 stopped as SIGTERM or SIGUSR1 asked, at the next
boundary (the end of the round or chunk in progress, evaluated and saved): give the same command again; 76 another
process was lost: give the same command again in all; 130 interrupted."""

STOPPABLE = ('pretrain', 'improve')  # commands with boundaries; a signal ends the others at once


def settle_environment() -> None:
    """Sets what must be set before jax is imported, where the user has not."""
    flags = os.environ.get('XLA_FLAGS', '')
    if 'ynn_fusion' not in flags and importlib.metadata.version('jaxlib').startswith('0.10.'):
        os.environ['XLA_FLAGS'] = f'{flags} {CPU_FLAG}'.strip()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, which HELP explains. A process among several may end here instead."""
    settle_environment()
    from t5x_selfimprove import config

    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['samples']:
        return show_samples(argv[1:])
    try:
        arguments = config.parse_arguments(argv)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.help:
        print(HELP.format(usage=config.USAGE))
        return 0
    os.environ.update(arguments.process)
    with stopping.listening() if arguments.command in STOPPABLE else contextlib.nullcontext():
        return run(arguments)


def show_samples(argv: list[str]) -> int:
    """Prints or greps stored paths, which has flags of its own."""
    from t5x_selfimprove import samples

    try:
        return samples.main(argv)
    except (ValueError, OSError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2


def run(arguments: Any) -> int:
    """Runs the command that was asked for; returns the exit code."""
    from t5x_selfimprove import config, processes

    try:
        if arguments.command == 'report':
            return report(arguments.words)
        built = config.build(config.ROOTS[arguments.command], arguments.files, arguments.bindings)
        identity = processes.identify()
        if built.set_aside and (identity is None or identity.number == 0):
            print(unused(built.set_aside))
        built.value.run(built.text)
        processes.finish()
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get('T5X_SELFIMPROVE_TRACEBACK'):
            if processes.count() == 1:
                raise
            traceback.print_exc()
        said = f'{type(error).__name__}: {error}'
        print(f'{processes.name()}: {said}' if processes.name() else said, file=sys.stderr)
        print('(T5X_SELFIMPROVE_TRACEBACK=1 shows where)', file=sys.stderr)
        return processes.leave(2, said)
    except stopping.Stopped as stopped:
        print(f'{stopped}. The same command goes on from there', file=sys.stderr)
        processes.finish()
        return stopping.SAVED
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
        return processes.leave(130, 'interrupted')
    except BaseException as error:  # a mistake of ours, or one that is to be shown whole: the others must not wait
        if processes.count() > 1:
            traceback.print_exc()
            processes.leave(1, f'{type(error).__name__}: {error}')
        raise
    return 0


def unused(set_aside: tuple[str, ...]) -> str:
    """One line for the bindings that this command does not read: parts that were replaced, or are of other commands."""
    parts = sorted({line.split(': ', 1)[1].split(' =')[0].rpartition('.')[0] or line for line in set_aside})
    return f'{len(set_aside)} bindings of the files are of parts that this run does not have: {", ".join(parts)}'


def report(words: list[str]) -> int:
    """Writes the report page of each run directory."""
    from t5x_selfimprove.report import write_report

    if not words:
        print('report needs a run directory: python -m t5x_selfimprove report runs/quickstart', file=sys.stderr)
        return 2
    for directory in words:
        print(f'report: {write_report(directory)}')
    return 0
