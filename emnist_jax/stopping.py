"""SIGTERM and SIGINT as a request that the loop looks at between two compiled calls."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within this context, signals are only noted; but a second Ctrl-C ends the process at once."""

    def __init__(self):
        self._signal = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        # Python handles signals in its main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._signal and kind is None:
            signal.raise_signal(self._signal)  # it came after the last look

    def _receive(self, number, frame) -> None:
        self._signal = number
        # Not for SIGTERM: schedulers send it more than once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def received(self) -> str | None:
        """Returns the name of the signal that any process received. All processes must ask at the same step."""
        number = self._signal
        if jax.process_count() > 1:
            number = multihost_utils.process_allgather(np.int32(number)).max()
        return signal.Signals(number).name if number else None
