"""The command line: python -m t5x_selfimprove {pretrain,improve,evaluate,sample,export,report,vocabulary} ..."""

import importlib.metadata
import os
import sys

# The YNNPACK fusions of jaxlib 0.10 slow decoding on a CPU (tests/benchmarks/sampler_batch.py measures it), and a
# prototype of a sampler drew other tokens in large batches with them than in small ones.
CPU_FLAG = '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE'

HELP = """{usage}

  vocabulary   learns the pieces of text that a model reads
  pretrain     trains a new model on examples
  improve      improves a model in place on questions, round after round
  evaluate     measures the model of a run directory on labelled questions
  sample       asks the model of a run directory questions and shows the vote
  export       writes the model of a run directory as a Hugging Face directory
  report       writes the page of one or more finished runs: report RUN_DIR ...

--gin_file names a configuration (gin/runs holds complete ones; each opens with its command), --gin.NAME=value sets a
value in it. A command that was stopped goes on where it was when it is given again."""


def settle_environment() -> None:
    """Sets what must be set before jax is imported, where the user has not."""
    flags = os.environ.get('XLA_FLAGS', '')
    if 'ynn_fusion' not in flags and importlib.metadata.version('jaxlib').startswith('0.10.'):
        os.environ['XLA_FLAGS'] = f'{flags} {CPU_FLAG}'.strip()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 2 a mistake of the user, 130 interrupted)."""
    settle_environment()
    from t5x_selfimprove import config

    try:
        arguments = config.parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(HELP.format(usage=config.USAGE))
            return 0
        if arguments.command == 'report':
            return report(arguments.words)
        built = config.build(config.ROOTS[arguments.command], arguments.files, arguments.bindings)
        if built.set_aside:
            print(unused(built.set_aside))
        built.value.run(built.text)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get('T5X_SELFIMPROVE_TRACEBACK'):
            raise
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        print('(T5X_SELFIMPROVE_TRACEBACK=1 shows where)', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
        return 130
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
