"""Processes that read batches ahead of training and share nothing with each other.

Each has a connection of its own, which ends when the process does. PyTorch's DataLoader gathers all results in one
queue: a worker killed at the wrong moment takes the queue's lock with it, or leaves half a message, and training waits
for good.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import blosc2
import torch
import torch.multiprocessing  # teaches ForkingPickler to hand tensors over in shared memory

from medtrain.data.sampler import SampleKey
from medtrain.errors import MedtrainError, ProcessKilledError
from medtrain.run.forkserver import STOP_SIGNALS, start_forkserver

Batch = dict[str, Any]

_SLOW_TO_IMPORT = ("albumentations",)  # and imported only where it is needed
_AHEAD = 2  # batches per worker that are asked for before they are needed
_GRACE_S = 5.0  # for a worker to notice that it is no longer needed, or for the news that it is dead


class Reader(Protocol):
    """Reads samples and puts them side by side; sent to every process."""

    def __getitem__(self, key: SampleKey, /) -> Any:
        """Read a sample."""
        ...

    def collate(self, samples: Sequence[Any], /) -> Batch:
        """Put samples side by side."""
        ...


@dataclass(frozen=True)
class _Failure:
    """What a worker sends in place of a batch."""

    error: BaseException


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


def read_ahead(
    reader: Reader,
    batches: Iterable[Sequence[SampleKey]],
    *,
    workers: int,
    finish: Callable[[Batch], Batch] | None = None,
    here: bool = False,
) -> Iterator[Batch]:
    """Batches in the order of their keys, read by several processes; closing the iterator ends them.

    Args:
        reader: What reads; sent to every process.
        batches: The keys of each batch; taken as needed, two batches per worker ahead.
        workers: Number of processes.
        finish: Applied to each batch in a thread of this process, one batch ahead.
        here: Whether this process reads, too, until the workers have started, which takes them seconds.

    Raises:
        ProcessKilledError: A worker was killed. What a worker raises is raised here, too.
    """
    context = _make_context(reader)
    started: list[_Worker] = []
    farewell = functools.partial(_hang_up, started)
    atexit.register(farewell)  # Python waits for them at its end, and they for us
    try:
        for _ in range(workers):
            started.append(_start(context, reader))
        keys = iter(batches)
        stream = _read_in_turn(started, keys)
        if here:
            stream = itertools.chain(_read_here(started, keys, reader), stream)
        yield from stream if finish is None else _finish_ahead(stream, finish, farewell)
    finally:
        atexit.unregister(farewell)
        _end(started)


def pin_tensors(batch: Mapping[str, Any], device: int) -> Batch:
    """A copy of a batch whose tensors lie in page-locked memory, from which copies to a GPU need not be waited for.

    Args:
        batch: Tensors, lists of tensors and other entries.
        device: Index of the GPU.
    """

    def pinned(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.pin_memory()
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [tensor.pin_memory() for tensor in value]
        return value

    with torch.cuda.device(device):
        return {name: pinned(value) for name, value in batch.items()}


def _read_here(workers: Sequence[_Worker], batches: Iterator[Sequence[SampleKey]], reader: Reader) -> Iterator[Batch]:
    """Batches read by this process until every worker has started, or ended."""
    while not all(worker.connection.poll() for worker in workers):
        keys = next(batches, None)
        if keys is None:
            return
        yield reader.collate([reader[key] for key in keys])


def _read_in_turn(workers: Sequence[_Worker], batches: Iterator[Sequence[SampleKey]]) -> Iterator[Batch]:
    """Batch i comes from worker i modulo their number."""
    pending: deque[_Worker] = deque()
    turns = itertools.cycle(workers)

    def ask(number: int) -> None:
        for keys in itertools.islice(batches, number):
            worker = next(turns)
            with _noticing_death(worker):
                worker.connection.send(list(keys))
            pending.append(worker)

    ask(_AHEAD * len(workers))
    while pending:
        worker = pending.popleft()
        with _noticing_death(worker):
            while (batch := worker.connection.recv()) is None:
                pass  # it has started
        if isinstance(batch, _Failure):
            raise batch.error
        ask(1)
        yield batch


@contextlib.contextmanager
def _noticing_death(worker: _Worker) -> Iterator[None]:
    """Say in a sentence that the process at the other end is gone."""
    try:
        yield
    except (EOFError, OSError) as error:
        worker.process.join(_GRACE_S)
        code = worker.process.exitcode
        if code is None:
            raise
        how = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
        why = "the machine probably ran out of memory"
        if code == -signal.SIGBUS:
            why = "the shared memory in /dev/shm is probably full (a container gets more with --shm-size=8g)"
        raise ProcessKilledError(
            f"a process that reads training data {how}", hint=f"{why}: choose a smaller data.num_workers, or 0"
        ) from error


def _finish_ahead(
    batches: Iterator[Batch], finish: Callable[[Batch], Batch], hang_up: Callable[[], None]
) -> Iterator[Batch]:
    """Finish batches in a thread, which waits while one is ready that nobody has taken.

    Args:
        batches: Where they come from.
        finish: Applied to each.
        hang_up: Ends the thread's wait for the next one.
    """
    ready: queue.SimpleQueue[Batch | _Failure | None] = queue.SimpleQueue()
    room = threading.Semaphore(1)
    closing = threading.Event()

    def work() -> None:
        try:
            for batch in batches:
                ready.put(finish(batch))
                room.acquire()
                if closing.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(_Failure(error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            room.release()
            yield item
    finally:
        closing.set()
        room.release()
        hang_up()
        thread.join()


def _make_context(reader: Reader) -> BaseContext:
    # not fork: the training process has threads (loggers, progress, CUDA), whose locks a forked child would inherit
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        # one import of torch, and of what the samples of this process took, for all workers
        own = {type(part).__module__ for part in (reader, *vars(reader).values())}
        needed = [name for name in sorted(own) if name.startswith("medtrain.")]
        context.set_forkserver_preload([__name__, *needed, *(name for name in _SLOW_TO_IMPORT if name in sys.modules)])
        start_forkserver()
    return context


def _start(context: BaseContext, reader: Reader) -> _Worker:
    ours, theirs = context.Pipe()
    try:
        process = context.Process(target=_work, args=(theirs, reader), daemon=True)  # type: ignore[attr-defined]
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()  # theirs alone now: the connection ends with the process
    return _Worker(process, ours)


def _hang_up(workers: Sequence[_Worker]) -> None:
    """End the connections, which wakes whoever waits at either end."""
    for worker in workers:
        with socket.socket(fileno=os.dup(worker.connection.fileno())) as end:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # the process has ended
                    raise


def _end(workers: Sequence[_Worker]) -> None:
    _hang_up(workers)
    deadline = time.monotonic() + _GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.connection.close()


def _work(connection: Connection, reader: Reader) -> None:
    """Read what is asked for until nobody asks any more; the training process may end in any way."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # stopping is left to the training process
    torch.set_num_threads(1)  # the other cores belong to the other workers
    blosc2.set_nthreads(1)
    done: queue.SimpleQueue[Batch | _Failure | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(connection, done), daemon=True)
    sender.start()
    with contextlib.suppress(EOFError, OSError):  # of the connection
        connection.send(None)
        while True:
            keys = connection.recv()
            try:
                done.put(reader.collate([reader[key] for key in keys]))
            except Exception as error:
                done.put(_Failure(_portable(error)))
    done.put(None)
    sender.join()  # not in the middle of a message: shared memory would be left behind


def _send(connection: Connection, done: queue.SimpleQueue[Batch | _Failure | None]) -> None:
    """Send what has been read, in a thread: the next batch is read while this one is copied to shared memory."""
    while (item := done.get()) is not None:
        try:
            message = ForkingPickler.dumps(item)
        except Exception as error:
            message = ForkingPickler.dumps(_Failure(_portable(error)))
        try:
            connection.send_bytes(message)
        except OSError:  # nobody waits for it
            return


def _portable(error: Exception) -> Exception:
    """An error as it can be sent, with where it was raised unless that says nothing to the user."""
    if not isinstance(error, MedtrainError):
        error.add_note(f"raised in a process that reads training data:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
