"""What a process does at SIGTERM, SIGINT and SIGHUP; of training, a request that it looks at between compiled calls."""

import multiprocessing
import os
import signal
import stat
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def handle(handler) -> dict:
    """Sets the handler of all `SIGNALS`, but under nohup not of SIGHUP, and returns the former ones."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return {number: signal.signal(number, handler) for number in SIGNALS if number not in ignored}


def leave_to_parent() -> None:
    """Of a process that another one started: leaves Ctrl-C to that one, and ends with it, however it ends."""

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


class StopRequest:
    """Within this context, signals are only noted; but a second Ctrl-C ends the process at once."""

    def __init__(self):
        self._signal = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        # Python handles signals in its main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = handle(self._receive)
        return self

    def __exit__(self, kind, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._signal and kind is None:
            signal.raise_signal(self._signal)  # it came after the last look

    def _receive(self, number, frame) -> None:
        self._signal = number
        if number == signal.SIGHUP:
            for descriptor in (1, 2):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    # The terminal is gone: to write to it would be an error.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        # Not for SIGTERM: schedulers send it more than once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def received(self) -> str | None:
        """Returns the name of the signal that any process received. All processes must ask at the same step."""
        import jax  # late: the commands handle signals before they import it
        import numpy as np
        from jax.experimental import multihost_utils

        number = self._signal
        if jax.process_count() > 1:
            number = multihost_utils.process_allgather(np.int32(number)).max()
        return signal.Signals(number).name if number else None
