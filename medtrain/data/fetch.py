"""Download a file so that a broken connection costs nothing and a wrong file never looks like the right one.

What has arrived lies in a `.part` file beside a note of what the server said of the file. A later attempt, or a later
process, asks for the rest only; if the server has changed the file or knows no ranges, it starts anew. The file gets
its name when it is whole and its checksum is right.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medtrain.errors import MedtrainError, UsageError
from medtrain.run.atomic import atomic_write_json, disk_errors

CHUNK = 1 << 20
TIMEOUT_S = 30.0
"""Wait for an answer, and for each part of it."""

CONNECT_S = 10.0
"""Wait for a connection."""

ATTEMPTS = 6
"""Attempts in a row that bring nothing new."""

FIRST_ATTEMPTS = 2
"""Attempts to reach a server that was never reached: without a network, waiting helps nobody."""

_LONGEST_WAIT_S = 60.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")

Report = Callable[[str, int, int | None], None]
"""Called with what is done, the bytes done and the bytes in all, where those are known."""


@dataclass(frozen=True)
class Origin:
    """What the server says of a file, by which a later answer is known to be of the same one.

    Args:
        url: Where it is.
        length: Bytes; None where the server does not say.
        etag: Its strong mark of the content, if it has one.
        modified: When it was changed, as the server writes it.
    """

    url: str
    length: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What makes a request for the rest conditional on the same file."""
        return self.etag or self.modified

    def same_file(self, other: Origin) -> bool:
        """Whether nothing that both answers say differs."""
        pairs = ((self.length, other.length), (self.etag, other.etag), (self.modified, other.modified))
        return self.url == other.url and all(a == b for a, b in pairs if a is not None and b is not None)


class _DroppedError(Exception):
    """The connection failed in a way that another attempt may mend."""


class _UnreachedError(_DroppedError):
    """The server could not be reached."""


class _ChangedError(Exception):
    """What lies in the part file cannot be continued."""


def fetch(
    url: str,
    path: Path,
    *,
    md5: str,
    report: Report,
    say: Callable[[str], None],
    need: Callable[[int, int, int], None],
    attempts: int = ATTEMPTS,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file, or the rest of it, check it and give it its name.

    Args:
        url: http or https.
        path: Where it goes; `<name>.part` and `<name>.json` beside it hold what has arrived.
        md5: Checksum, 32 hexadecimal digits.
        report: Told how far it is.
        say: Told what is worth a line: another attempt, a new beginning.
        need: Called before more is written with the bytes of the whole file, those that are here, and those that
            are of no use and give their room back; raises if there is no room.
        attempts: Attempts in a row that may bring nothing new.
        wait: Called with the seconds to wait before another attempt.

    Raises:
        UsageError: The address is none.
        MedtrainError: The server does not have the file, keeps failing, or sends another one; the disk is full.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"not an address of a file: {url}", hint="it begins with https:// or http://")
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.json")
    known = _read_note(note, url)
    failed, changes, farthest = 0, 0, _size(part) if known is not None else 0
    reached = False
    while True:
        try:
            _transfer(url, part, note, report=report, say=say, need=need)
            break
        except _ChangedError as change:
            say(f"{change}: starting anew")
            _forget(part, note)
            reason, reached = str(change), True
        except _DroppedError as drop:
            reason, reached = str(drop), reached or not isinstance(drop, _UnreachedError)
        here, now = _size(part), _read_note(note, url)
        if known is not None and now is not None and not known.same_file(now):
            changes, farthest = changes + 1, 0  # what came of the other file is no measure for this one
        known = now or known
        if changes >= attempts:
            raise MedtrainError(f"{url} could not be downloaded: the file on the server has changed {changes} times")
        failed = 0 if here > farthest else failed + 1
        farthest = max(farthest, here)
        if not reached and failed >= FIRST_ATTEMPTS:
            host = urllib.parse.urlsplit(url).hostname
            kept = f"; {format_bytes(here)} are here, and the same command continues there" if here else ""
            raise MedtrainError(
                f"{url} could not be downloaded: {reason}",
                hint=f"is this machine online, and can it reach {host}? https_proxy names a proxy{kept}",
            )
        if failed >= attempts:
            raise MedtrainError(
                f"{url} could not be downloaded: {reason} ({attempts} attempts, {format_bytes(here)} are here)",
                hint="start the same command again: it continues where it was" if here else "is the network there?",
            )
        seconds = min(2.0**failed, _LONGEST_WAIT_S)
        say(f"{reason}; next attempt in {seconds:.0f} s")
        wait(seconds)
    digest = checksum(part, report)
    if digest != md5.lower():
        size = _size(part)
        _forget(part, note)
        raise MedtrainError(
            f"{url} is not the expected file: md5 {digest} of {size:,} bytes, expected {md5.lower()}",
            hint="it was damaged on the way, or is another file on this server; what came was removed: start again, "
            "or name another address with --url (and its checksum with --md5)",
        )
    with disk_errors(path):
        _sync(part)
        part.replace(path)
        note.unlink(missing_ok=True)


def checksum(path: Path, report: Report) -> str:
    """The md5 sum of a file, 32 hexadecimal digits; the sum of the Decathlon's publishers, no protection by itself."""
    state = hashlib.md5(usedforsecurity=False)
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
            done += len(chunk)
            report("checking", done, total)
    return state.hexdigest()


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as download pages give them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def _transfer(
    url: str,
    part: Path,
    note: Path,
    *,
    report: Report,
    say: Callable[[str], None],
    need: Callable[[int, int, int], None],
) -> None:
    """One attempt: ask for what is missing and write it."""
    known = _read_note(note, url) if part.exists() else None
    start = _size(part) if known is not None else 0
    if known is not None and known.length is not None and start == known.length:
        return  # whole; only the check was missing
    headers = {"User-Agent": "medtrain", "Accept-Encoding": "identity"}
    if known is not None and start:
        headers["Range"] = f"bytes={start}-"
        if known.validator is not None:
            headers["If-Range"] = known.validator
    with _open(url, headers, start) as answer:
        offset, origin = _understand(url, answer, start, known)
        if start and not offset:
            say("the server sends the file from its beginning")
        need(origin.length or 0, offset, _size(part) - offset)
        with disk_errors(part), part.open("ab" if offset else "wb") as file:
            atomic_write_json(note, asdict(origin))
            done = offset
            for chunk in _chunks(answer):
                file.write(chunk)
                done += len(chunk)
                report("downloading", done, origin.length)
    if origin.length is not None and done < origin.length:
        raise _DroppedError(f"the connection broke off at {done:,} of {origin.length:,} bytes")


class _Connection(http.client.HTTPConnection):
    """Waits less for a connection than for an answer: a server may need long to find a file."""

    def connect(self) -> None:
        usual, self.timeout = self.timeout, CONNECT_S
        super().connect()
        self.sock.settimeout(usual)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same, encrypted."""


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


@contextmanager
def _open(url: str, headers: dict[str, str], start: int) -> Iterator[http.client.HTTPResponse]:
    opener = urllib.request.build_opener(_Handler, _SecureHandler)
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            _refuse(url, error, start)
        raise AssertionError("a refusal raises") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise MedtrainError(
                f"{url}: the server's certificate is not valid: {error.reason.verify_message}",
                hint="is a proxy in between? SSL_CERT_FILE names the certificates to trust",
            ) from None
        raise _UnreachedError(f"no connection: {_reason(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(f"no answer: {_reason(error)}") from None
    with answer:
        yield answer


def _refuse(url: str, error: urllib.error.HTTPError, start: int) -> None:
    """Turn an answer that brings no file into what to do about it."""
    if error.code == 416:
        match = _UNSATISFIED.fullmatch(error.headers.get("Content-Range", ""))
        length = f"{int(match[1]):,}" if match else "fewer"
        raise _ChangedError(f"{start:,} bytes are here, the server's file has {length}")
    if error.code in _AGAIN:
        raise _DroppedError(f"the server answers {error.code} {error.reason}")
    raise MedtrainError(
        f"the server answers {error.code} {error.reason} for {url}",
        hint="look for the file's new address and name it with --url" if error.code in (403, 404, 410) else None,
    )


def _understand(url: str, answer: http.client.HTTPResponse, start: int, known: Origin | None) -> tuple[int, Origin]:
    """Where the answer begins within the file, and what it says of the file.

    Raises:
        _ChangedError: It is the rest of another file.
        MedtrainError: It is no plain file.
    """
    headers = answer.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise MedtrainError(f"{url} is sent encoded as {headers['Content-Encoding']}, which cannot be continued")
    etag = headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    if answer.status != 206:
        return 0, Origin(url, size, strong, headers.get("Last-Modified"))
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise _ChangedError(
            f"the server sends {headers.get('Content-Range')!r} where the rest from {start} was asked for"
        )
    origin = Origin(url, int(match[2]), strong, headers.get("Last-Modified"))
    if known is None or not known.same_file(origin):
        raise _ChangedError("the file on the server has changed")
    return start, origin


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(CHUNK)
        except http.client.IncompleteRead as error:
            yield error.partial
            raise _DroppedError("the connection broke off") from None
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(f"the connection broke off: {_reason(error)}") from None
        if not chunk:
            return
        yield chunk


def _reason(error: Any) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _read_note(note: Path, url: str) -> Origin | None:
    """What the part file holds the beginning of; None if that is not known or comes from elsewhere."""
    try:
        origin = Origin(**json.loads(note.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return origin if origin.url == url else None


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
