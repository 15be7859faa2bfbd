"""SIGTERM and SIGINT ask a run to stop; it does so when its step is done and saved.

with StopSignals() as stop:
    while not stop.received:
        step()
"""

import signal
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher that is interrupted passes the signal on at once; a person presses twice later than that.
_PATIENCE_S = 2.0


class StopSignals:
    """While open, SIGTERM and SIGINT (Ctrl-C) are noted instead of ending the process. Ours.

    `received` is the name of the first one, "" before. A second Ctrl-C, two seconds later or more, interrupts at once.
    Opened in a process's main thread only.
    """

    def __init__(self) -> None:
        self.received = ""
        self._when = 0.0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._when > _PATIENCE_S:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._when = signal.Signals(number).name, now


def ignore_stop_signals(worker: int = 0) -> None:
    """Leave stopping to the parent: a terminal or a scheduler sends its signal to data loading processes as well."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
