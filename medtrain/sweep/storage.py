"""Where a study is kept: a journal file, SQLite, PostgreSQL, or Optuna's gRPC proxy."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage

from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.run.atomic import disk_errors
from medtrain.sweep.journal import Journal, JournalFile

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""How long a server may take to answer when a storage is opened."""
PATIENCE_S = 300.0
"""How long a server that has answered before is waited for: long enough to restart it."""

_SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_SQLITE_BUSY_S = 60.0
_WHERE = "a sweep keeps its study in its folder: medtrain sweep --worker FOLDER/journal.log STUDY"


def open_storage(text: str, *, create: bool = True) -> BaseStorage:
    """Open where a study is kept.

    Args:
        text: A path (`x.db` is SQLite, anything else a journal), `sqlite:///x.db`, `postgresql://user@host/db` or
            `grpc://host:port`.
        create: Make the file or the tables if they are not there; else nothing is written.

    Raises:
        UsageError: The text is none of these, or what must be there is not.
        MissingExtraError: PostgreSQL's driver is not installed.
        MedtrainError: It cannot be reached, opened or made.
    """
    silence_optuna()
    scheme, separator, rest = text.partition("://")
    if not separator:
        path = Path(text).expanduser()
        return _open_sqlite(path, create) if path.suffix in _SQLITE_SUFFIXES else _open_journal(path, create)
    if scheme == "sqlite":
        return _open_sqlite(Path(rest.removeprefix("/")).expanduser(), create)
    if re.fullmatch(r"postgres(ql)?(\+psycopg)?", scheme):
        return _open_postgres(f"postgresql+psycopg://{rest}", create)
    if scheme == "grpc":
        return _open_proxy(text, rest)
    raise UsageError(
        f"unknown kind of storage: {_hide_password(text)}",
        hint="use a path (x.log is a journal, x.db SQLite), postgresql://user@host/db or grpc://host:port",
    )


def silence_optuna() -> None:
    """Leave it to the coordinator to say what matters."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a storage."""
    inner = storage.inner if isinstance(storage, Enduring) else storage
    backend = getattr(inner, "_backend", None)
    if isinstance(backend, RDBStorage):
        backend.scoped_session.remove()
        backend.engine.dispose()
    elif isinstance(inner, GrpcStorageProxy):
        inner.close()


def serve(storage: str, host: str = "localhost", port: int = 13000) -> None:
    """Offer a storage to workers that can reach this machine as `grpc://host:port`, until the process is ended.

    Args:
        storage: As for `open_storage`.
        host: Name or address to listen on; `0.0.0.0` is every interface. There is no password.
        port: Port to listen on.

    Raises:
        MedtrainError: The storage cannot be opened, or the address cannot be listened on.
    """
    opened = open_storage(storage)
    log.info("serving %s at grpc://%s:%d", _hide_password(storage), host, port)
    try:
        with _without_notes():
            optuna.storages.run_grpc_proxy_server(opened, host=host, port=port)
    except RuntimeError as error:
        raise MedtrainError(f"cannot listen on {host}:{port}: {error}", hint="choose another port") from error
    finally:
        close_storage(opened)


class Enduring(BaseStorage):
    """A storage on a server or in a database: calls are repeated while it does not answer.

    Nearly all calls may be repeated as they are. A trial that was created although no answer came is left running
    under this worker, which finds it in `SweepStudy.recover`.

    Args:
        inner: The storage.
        name: For messages.
    """

    def __init__(self, inner: BaseStorage, name: str) -> None:
        self.inner = inner
        self.name = name

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the storage.

        Raises:
            MedtrainError: It has not answered for `PATIENCE_S`.
        """
        deadline, pause = time.monotonic() + PATIENCE_S, 0.25
        while True:
            try:
                return getattr(self.inner, name)(*args, **kwargs)
            except Exception as error:
                if not _is_disconnect(error):
                    raise
                if time.monotonic() > deadline:
                    raise MedtrainError(
                        f"{self.name} has not answered for {PATIENCE_S:g} s: {_reason(error)}",
                        hint="finished trials are safe; `medtrain resume` continues when it is back",
                    ) from error
                if pause >= 2:
                    log.warning("%s does not answer (%s): trying again", self.name, _reason(error))
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 10.0)


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Enduring, *args: Any, **kwargs: Any) -> Any:
        return self.call(name, *args, **kwargs)

    method.__name__ = name
    return method


for _method in [key for key in vars(BaseStorage) if not key.startswith("_")]:
    setattr(Enduring, _method, _forward(_method))
Enduring.__abstractmethods__ = frozenset()


def _enduring(inner: BaseStorage, name: str) -> BaseStorage:
    return Enduring(inner, name)  # type: ignore[abstract]


def _open_journal(path: Path, create: bool) -> BaseStorage:
    _check_file(path, create)
    with disk_errors(path):
        return Journal(JournalFile(path))


def _open_sqlite(path: Path, create: bool) -> BaseStorage:
    _check_file(path, create)
    import sqlalchemy

    storage = _connect(
        f"sqlite:///{path}",
        str(path),
        {"connect_args": {"timeout": _SQLITE_BUSY_S}},
        hint="is it a database of Optuna?",
        create=create,
    )
    engine = storage.engine
    engine.dispose()

    # Python's driver begins a transaction only before the first write, so that two workers could both read that a
    # trial waits and both take it: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite-serializable
    @sqlalchemy.event.listens_for(engine, "connect")
    def _leave_transactions_alone(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _lock_from_the_start(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return _enduring(optuna.storages.get_storage(storage), str(path))


def _open_postgres(url: str, create: bool) -> BaseStorage:
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtraError("psycopg", extra="postgres", purpose="a study in PostgreSQL")
    name = _hide_password(url).replace("+psycopg", "")
    arguments = {"connect_args": {"connect_timeout": round(ANSWER_S)}, "pool_pre_ping": True}
    hint = "is the server running, and may this user create tables there?"
    storage = _connect(url, name, arguments, hint=hint, create=create)
    return _enduring(optuna.storages.get_storage(storage), name)


def _open_proxy(text: str, address: str) -> BaseStorage:
    host, _, port = address.rstrip("/").rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{text} names no port", hint="write grpc://HOST:PORT, for instance grpc://node1:13000")
    with _without_notes():
        proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=ANSWER_S)
    except ConnectionError as error:
        proxy.close()
        raise MedtrainError(
            f"no answer from {text} within {ANSWER_S:g} s",
            hint="is the proxy running, and is its port open to this machine?",
        ) from error
    return _enduring(proxy, text)


def _connect(url: str, name: str, arguments: dict[str, Any], *, hint: str, create: bool) -> RDBStorage:
    """Open a database; several workers may make its tables at the same time."""
    import sqlalchemy.exc

    attempts = 5
    for attempt in range(attempts):
        try:
            return RDBStorage(url, engine_kwargs=dict(arguments), skip_table_creation=not create)
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise UsageError(f"{name} is no valid address: {_reason(error)}") from error
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            if not create and re.search(r"no such table|relation .* does not exist", _reason(error)):
                raise UsageError(f"there is no study in {name}", hint=_WHERE) from error
            if attempt == attempts - 1 or _is_final(error):
                raise MedtrainError(f"cannot open {name}: {_reason(error)}", hint=hint) from error
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and a storage is a file", hint=f"write {path / 'journal.log'}")
    if not create and not path.exists():
        raise UsageError(f"there is no file {path}", hint=_WHERE)
    if not path.parent.is_dir():
        raise UsageError(f"cannot make {path}: there is no folder {path.parent}")


def _is_disconnect(error: Exception) -> bool:
    import sqlalchemy.exc

    if isinstance(error, StorageInternalError):
        return isinstance(error.__cause__, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return True
    code = getattr(error, "code", None)
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def _is_final(error: Exception) -> bool:
    """Whether opening a database once more would end the same way."""
    text = str(error)
    return any(
        part in text
        for part in ("is not a database", "refused", "No such file", "authentication", "does not exist", "resolve")
    ) or isinstance(error, RuntimeError)


def _reason(error: Exception) -> str:
    """The first line of what a driver says."""
    cause: BaseException = error
    while isinstance(cause, StorageInternalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    origin = getattr(cause, "orig", None) or cause
    details = getattr(origin, "details", None)
    text = str(details() if callable(details) else origin).strip() or type(origin).__name__
    return text.splitlines()[0].rstrip(". ")


def _hide_password(text: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", text)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keep Optuna's notes on its own interface from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
