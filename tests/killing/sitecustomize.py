"""Python runs this file first where its folder is on the path: it kills the process at a chosen change of its files.

What is set in the environment: KILLING_IN, the folder that is watched; KILLING_LOG, a file that the changes are
written to, one a line, such as `os.rename checkpoints/1.orbax-checkpoint-tmp`; KILLING_AT, the change before which the
process gets a signal; KILLING_SIGNAL, its name, SIGKILL if it is not set; KILLING_AFTER, seconds to wait from there on
(what writes by itself, such as the threads of the checkpoint's arrays, goes on meanwhile).
"""

import os
import signal
import sys
import threading
import time

CHANGES = frozenset('open os.rename os.mkdir os.remove os.rmdir os.truncate shutil.rmtree'.split())
FOLDER = os.environ.get('KILLING_IN')


def kill(seconds: float) -> None:
    """Ends this process as the system would: nothing is flushed, nothing closed."""
    time.sleep(seconds)
    os.kill(os.getpid(), signal.Signals[os.environ.get('KILLING_SIGNAL', 'SIGKILL')])


def watch() -> None:
    """Logs every change in the folder from here on, and kills at the chosen one."""
    chosen, seconds = os.environ.get('KILLING_AT'), float(os.environ.get('KILLING_AFTER', '0'))
    log = os.open(os.environ['KILLING_LOG'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    reads = lambda event, flags: event == 'open' and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)  # noqa: E731

    def happens(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if not path.startswith(FOLDER) or reads(event, arguments[-1]):
            return
        change = f'{event} {os.path.relpath(path, FOLDER)}'
        os.write(log, f'{change}\n'.encode())
        if change == chosen:
            if seconds:
                threading.Thread(target=kill, args=(seconds,), daemon=True).start()
            else:
                kill(0)

    sys.addaudithook(happens)


if FOLDER:
    watch()
