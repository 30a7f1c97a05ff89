"""A process that compares answers as mathematics, one pair at a time, until it is told no more or killed.

Run as a file by `SymbolicGrader`, it imports nothing of the project. Pairs come as JSON lines [label, answer]; for each
one line goes back: true, false, or null where one of the two is no mathematics. The first line says 'ready'.
"""

import json
import sys

MEMORY = 4 << 30  # bytes of address space; who asks for more gets an error instead of the machine's memory


def serve() -> None:
    """Answers every line of standard input."""
    import resource

    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def read(text: str) -> list:
        # No time-outs of its own: they are signals that do not reach code outside Python. Who waits kills.
        return parse(f'${text}$', parsing_timeout=None) or parse(text, parsing_timeout=None)

    print('ready', flush=True)
    for line in sys.stdin:
        label, answer = map(read, json.loads(line))
        equal = bool(verify(label, answer, timeout_seconds=None)) if label and answer else None
        print(json.dumps(equal), flush=True)


if __name__ == '__main__':
    serve()
