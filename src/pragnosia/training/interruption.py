"""Ctrl-C: the first asks the loop to stop at the next step with everything saved; the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import final


@final
class Interruption:
    """A context in which `asked` becomes true when the person at the keyboard has had enough."""

    def __init__(self) -> None:
        self.asked = False
        self.before: signal.Handlers | int | None = None

    def __enter__(self) -> Interruption:
        # Only the main thread may hold a signal; elsewhere whoever owns the thread decides when it ends.
        if threading.current_thread() is threading.main_thread():
            self.before = signal.getsignal(signal.SIGINT)  # type: ignore[assignment]
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
