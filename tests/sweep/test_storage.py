"""Storages: how each is named, opened and lost, and that the study works the same in all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.trial import TrialState

from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.sweep import storage as module
from medtrain.sweep.storage import Enduring, close_storage, open_storage, serve
from medtrain.sweep.study import SweepStudy
from tests.sweep.searches import DICE, LR, MIXED, SIZE, complete, define, search

NOBODY = 65534


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def opened() -> Iterator[Callable[[str], BaseStorage]]:
    """Opens storages, and closes them in the end."""
    storages = []

    def make(text: str) -> BaseStorage:
        storages.append(open_storage(text))
        return storages[-1]

    yield make
    for storage in storages:
        close_storage(storage)


class PostgreSQL:
    """A real server in a folder, on a socket and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.data, self.port, self.log = folder / "data", free_port(), folder / "log"
        folder.mkdir(mode=0o777)
        if os.geteuid() == 0:  # the server refuses to run as root
            os.chown(folder, NOBODY, NOBODY)
        self._run("initdb", "-D", str(self.data), "-U", "trainer", "--auth=trust", "--no-sync", "-E", "UTF8")
        self._options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={folder} -c fsync=off"
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://trainer@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.log), "-o", self._options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        rights: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        quiet = subprocess.DEVNULL
        subprocess.run([find(program), *arguments], check=True, stdout=quiet, stderr=quiet, cwd="/", **rights)


def find(program: str) -> str:
    found = shutil.which(program) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))), None)
    if found is None:
        pytest.skip(f"no {program}: install Debian's package postgresql")
    return found


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'medtrain[postgres]'")
    find("initdb")
    folder = Path("/tmp") / f"medtrain-test-postgres-{os.getpid()}"  # below it is readable for the server's user
    server = PostgreSQL(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


@contextlib.contextmanager
def proxy(storage: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """Optuna's proxy in a process of its own."""
    code = "import sys; from medtrain.sweep.storage import serve; serve(sys.argv[1], 'localhost', int(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, storage, str(port)], text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["journal", "sqlite", "postgres", "grpc", "grpc over a journal"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """How a storage of each kind is named."""
    folder = tmp_path_factory.mktemp("storage")
    if request.param == "postgres":
        server: PostgreSQL = request.getfixturevalue("postgres")
        yield f"{server.url}?options=-csearch_path%3D{_schema(server)}"
    elif request.param.startswith("grpc"):
        port = free_port()
        with proxy(str(folder / ("x.log" if "journal" in request.param else "x.db")), port):
            yield f"grpc://localhost:{port}"
    else:
        yield str(folder / {"journal": "x.log", "sqlite": "x.db"}[request.param])


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for this test's study."""
    return str(request.node.name)


def _schema(server: PostgreSQL) -> str:
    """A new, empty schema: one per test is faster than a server per test."""
    import psycopg

    name = f"test{time.monotonic_ns()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return name


class TestEveryKind:
    """The study in each storage."""

    def test_a_search_is_the_same_in_each(self, address: str, name: str, opened: Any) -> None:
        definition = define(MIXED, sampler="tpe", pruner="median", n_trials=8, constraints=["parameters <= 1.9e6"])
        study = SweepStudy.create(opened(address), name, definition)
        there = SweepStudy.create(InMemoryStorage(), "study", definition)
        assert search(study) == search(there)
        again = SweepStudy.load(opened(address), name)
        assert again.definition == definition
        mine, other = again.trials(), there.trials()
        for key in ("number", "state", "values", "params", "intermediate_values", "constraints"):
            assert [getattr(trial, key) for trial in mine] == [getattr(trial, key) for trial in other]
        assert [trial.number for trial in again.best(3)] == [trial.number for trial in there.best(3)]
        kept = ("metrics", "message", "failure", "seconds", "origin")
        assert [[t.user_attrs[key] for key in kept] for t in mine] == [
            [t.user_attrs[key] for key in kept] for t in other
        ]

    def test_trials_go_on_under_another_worker(self, address: str, name: str, opened: Any) -> None:
        definition = define((LR,), n_trials=2, try_default=False, objectives=(DICE,))
        first = SweepStudy.create(opened(address), name, definition)
        begun, released = first.next(), first.next()
        first.report(begun, 50, 0.4)
        first.release(released)
        second = SweepStudy.load(opened(address), name)
        taken = second.next()
        assert (taken.number, taken.params, taken.origin) == (1, released.params, "again")
        assert second.next() is None
        assert second.finish(taken, complete()) == "complete"
        assert first.finish(released, complete()) == "lost"
        assert first.finish(begun, complete()) == "complete"
        assert second.counts().complete == 2
        assert second.trials()[0].intermediate_values == {50: 0.4}

    def test_orphans_are_taken_by_one_of_two(self, address: str, name: str, opened: Any) -> None:
        definition = define((LR,), n_trials=3, try_default=False)
        dead = SweepStudy.create(opened(address), name, definition)
        for _ in range(3):
            dead.next()
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        for trial in dead.trials():
            owner = {**trial.user_attrs["worker"], "pid": process.pid, "token": "dead"}
            dead._storage.set_trial_user_attr(trial._trial_id, "worker", owner)
        crews = [SweepStudy.load(opened(address), name) for _ in range(2)]
        start, got = threading.Barrier(2), []

        def work(study: SweepStudy) -> None:
            start.wait()
            for _ in range(20):
                study.recover()
                while (assignment := study.next()) is not None:
                    got.append(assignment.number)

        threads = [threading.Thread(target=work, args=(study,)) for study in crews]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [0, 1, 2]

    def test_the_number_of_trials_is_kept_among_workers(self, address: str, name: str, opened: Any) -> None:
        definition = define((LR,), n_trials=7, sampler="random")
        SweepStudy.create(opened(address), name, definition)
        tried: list[dict[str, Any]] = []

        def work() -> None:
            tried.extend(search(SweepStudy.load(opened(address), name)))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tried) == 7
        assert len({str(point) for point in tried}) == 7
        assert SweepStudy.load(opened(address), name).counts().complete == 7

    def test_a_front_and_values_that_are_not_finite_are_kept(self, address: str, name: str, opened: Any) -> None:
        study = SweepStudy.create(opened(address), name, define((LR,), objectives=(DICE, SIZE), n_trials=2))
        first = study.next()
        result = complete(val__dice=0.5, parameters=3.0, val__hd95_mm=float("nan"), other=float("inf"))
        assert study.finish(first, result) == "complete"
        metrics = SweepStudy.load(opened(address), name).trials()[0].user_attrs["metrics"]
        assert metrics["other"] == float("inf")
        assert metrics["val/hd95_mm"] != metrics["val/hd95_mm"]


def test_the_kind_is_read_from_the_name(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a.log", "b", str(tmp_path / "c.log")):
        assert isinstance(opened(text), JournalStorage)
    for text in ("a.db", "b.sqlite3", "sqlite:///c.db", f"sqlite:///{tmp_path}/d.db"):
        assert isinstance(opened(text), Enduring)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.log", "b", "c.log", "a.db", "b.sqlite3", "c.db", "d.db"}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("mysql://me:secret@host/x", UsageError, r"unknown kind of storage: mysql://me:\*\*\*@host/x"),
        ("redis://host", UsageError, "unknown kind of storage: redis://host"),
        ("grpc://host", UsageError, "names no port"),
        ("grpc://:13000", UsageError, "names no port"),
        ("postgresql://me@host:port/x", UsageError, "is no valid address"),
        ("{folder}", UsageError, "is a folder, and a storage is a file"),
        ("{folder}/no/x.log", UsageError, "there is no folder .*/no"),
        ("{folder}/no/x.db", UsageError, "there is no folder .*/no"),
        ("{folder}/text.db", MedtrainError, "cannot open .*text.db: file is not a database"),
        ("postgresql://me:secret@127.0.0.1:1/x", MedtrainError, r"cannot open postgresql://me:\*\*\*@127.0.0.1:1/x: "),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_sentence(
    text: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("this is a text " * 100, encoding="utf-8")
    with pytest.raises(kind, match=message) as caught:
        open_storage(text.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}/nothere.log", "{}/nothere.db", "sqlite:///{}/nothere.db", "{}/no/x.log"])
def test_a_storage_that_must_be_there_is_not_made(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*(nothere|x)\.") as caught:
        open_storage(text.format(tmp_path), create=False)
    assert "--worker" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_studies_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(UsageError, match=r"there is no study in .*empty\.db"):
        open_storage(str(tmp_path / "empty.db"), create=False)
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.parametrize("name", ["x.log", "x.db"])
def test_a_storage_that_is_there_is_opened_without_making_it(name: str, tmp_path: Path, opened: Any) -> None:
    SweepStudy.create(opened(str(tmp_path / name)), "study", define((LR,)))
    again = open_storage(str(tmp_path / name), create=False)
    assert SweepStudy.load(again, "study").name == "study"
    close_storage(again)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    with pytest.raises(MedtrainError, match=r"no answer from grpc://localhost:\d+ within 0.2 s"):
        open_storage(f"grpc://localhost:{free_port()}")


def test_postgresql_needs_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as caught:
        open_storage("postgresql://me@host/x")
    assert caught.value.hint == "pip install 'medtrain[postgres]'"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MedtrainError, match=r"cannot listen on 127\.0\.0\.1:"):
            serve(str(tmp_path / "x.log"), "127.0.0.1", taken.getsockname()[1])


def test_sqlite_gives_a_waiting_trial_to_one_of_two(tmp_path: Path, opened: Any) -> None:
    """Python's driver would let both read that it waits before either writes."""
    path = str(tmp_path / "x.db")
    study = optuna.create_study(study_name="s", storage=opened(path))
    for _ in range(10):
        study.enqueue_trial({})
    ids = [trial._trial_id for trial in study.trials]
    start, won = threading.Barrier(2), []

    def work(storage: BaseStorage) -> None:
        for trial_id in ids:
            start.wait()
            if storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                won.append(trial_id)

    threads = [threading.Thread(target=work, args=(opened(path),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == ids


def test_a_database_that_is_locked_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SQLITE_BUSY_S", 0.01)
    storage = open_storage(str(tmp_path / "x.db"))
    study = optuna.create_study(study_name="s", storage=storage)
    other = sqlite3.connect(tmp_path / "x.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.4, other.rollback)
    timer.start()
    study.set_user_attr("key", 1)
    assert study.user_attrs == {"key": 1}
    timer.join()
    other.close()
    close_storage(storage)


class TestEnduring:
    """Calls are repeated while a server does not answer, and not otherwise."""

    def failing(self, error: Exception, times: int, patch: pytest.MonkeyPatch) -> tuple[BaseStorage, list[float]]:
        pauses: list[float] = []
        patch.setattr(module.time, "sleep", pauses.append)
        inner = InMemoryStorage()
        create = inner.create_new_study
        calls = iter([error] * times)

        def sometimes(*args: Any, **kwargs: Any) -> int:
            problem = next(calls, None)
            if problem is not None:
                raise problem
            return create(*args, **kwargs)

        patch.setattr(inner, "create_new_study", sometimes)
        return Enduring(inner, "the server"), pauses  # type: ignore[abstract]

    def lost(self) -> Exception:
        import sqlalchemy.exc

        error = optuna.exceptions.StorageInternalError("see below")
        error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection\nby"))
        return error

    def test_a_lost_connection_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage, pauses = self.failing(self.lost(), 5, monkeypatch)
        study = optuna.create_study(study_name="s", storage=storage)
        assert study.study_name == "s"
        assert len(pauses) == 5
        assert pauses[-1] > pauses[0]

    def test_it_is_given_up_after_minutes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage, _ = self.failing(self.lost(), 1000, monkeypatch)
        clock = iter(range(0, 100_000, 60))
        monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
        with pytest.raises(MedtrainError, match="the server has not answered for 300 s: server closed the connection"):
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")

    def test_other_errors_are_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage, pauses = self.failing(DuplicatedStudyError(), 1, monkeypatch)
        with pytest.raises(DuplicatedStudyError):
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
        assert pauses == []

    def test_every_method_of_a_storage_is_passed_on(self) -> None:
        public = {name for name in vars(BaseStorage) if not name.startswith("_")}
        assert public <= vars(Enduring).keys()


def test_a_server_that_is_restarted_loses_nothing(postgres: PostgreSQL, opened: Any) -> None:
    study = SweepStudy.create(
        opened(f"{postgres.url}?options=-csearch_path%3D{_schema(postgres)}"), "study", define((LR,), n_trials=3)
    )
    first = study.next()
    postgres.stop()
    thread = threading.Thread(target=postgres.start)
    thread.start()
    assert study.finish(first, complete(val__dice=0.7)) == "complete"
    thread.join()
    search(study)
    assert study.counts().complete == 3


@pytest.mark.slow  # the channel waits ever longer before it looks again
def test_a_proxy_that_is_restarted_loses_nothing(tmp_path: Path, opened: Any) -> None:
    port, path = free_port(), str(tmp_path / "x.db")
    with proxy(path, port):
        study = SweepStudy.create(opened(f"grpc://localhost:{port}"), "study", define((LR,), n_trials=3))
        first = study.next()
    with proxy(path, port):
        assert study.finish(first, complete(val__dice=0.7)) == "complete"
        search(study)
        assert study.counts().complete == 3
