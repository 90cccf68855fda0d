"""Stopping on request: the first signal asks, the second one insists."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C, a scheduler's or supervisor's request to end, and SLURM's `--signal=B:USR1@120` warning."""


class StopSignals:
    """While active, turns the first stop signal into a flag and lets a second Ctrl-C interrupt at once.

    May be entered again inside itself. Only the main thread may handle signals; elsewhere this does nothing. The
    previous handlers come back on exit.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}
        self._depth = 0

    def __enter__(self) -> StopSignals:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._previous.clear()

    @contextlib.contextmanager
    def before_forward(self, model: nn.Module, error: type[Exception], *, active: bool) -> Iterator[None]:
        """While active, a model that is called after a stop signal raises instead: a whole scan may take many minutes.

        A compiled model is left alone, since a hook would have it compiled anew.

        Args:
            model: Its forward passes are interrupted.
            error: Raised.
            active: False does nothing.
        """

        def check(*_: object) -> None:
            if self.received is not None:
                raise error

        if not active or model._compiled_call_impl is not None:
            yield
            return
        handle = model.register_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
