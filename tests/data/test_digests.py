"""Digests of files: what is remembered, and when a file is read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from medtrain.data.case import Case
from medtrain.data.digests import DigestCache, digest_of
from medtrain.errors import DataError


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_file_is_read_again_when_its_size_or_time_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "a", DigestCache(tmp_path / "cache.json")
    file.write_bytes(b"one")
    os.utime(file, ns=(10, 10))
    assert cache.digest(file) == _digest(b"one")
    file.write_bytes(b"two")
    os.utime(file, ns=(10, 10))
    assert cache.digest(file) == _digest(b"one")  # by size and time it is the same file
    os.utime(file, ns=(10, 11))
    assert cache.digest(file) == _digest(b"two")
    file.write_bytes(b"three")
    os.utime(file, ns=(10, 11))
    assert cache.digest(file) == _digest(b"three")


def test_what_another_process_saved_meanwhile_is_kept(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    first, second = DigestCache(tmp_path / "cache.json"), DigestCache(tmp_path / "cache.json")
    for cache, file in zip((first, second), files, strict=True):
        file.write_bytes(file.name.encode())
        os.utime(file, ns=(10, 10))
        cache.digest(file)
        cache.save()
    for file in files:
        file.write_bytes(b"x")  # of the same size
        os.utime(file, ns=(10, 10))
    later = DigestCache(tmp_path / "cache.json")
    assert [later.digest(file) for file in files] == [_digest(b"a"), _digest(b"b")]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path, file = tmp_path / "cache.json", tmp_path / "a"
    path.write_text(content)
    file.write_bytes(b"one")
    cache = DigestCache(path)
    assert cache.digest(file) == _digest(b"one")
    cache.save()
    assert str(file) in path.read_text()


def test_a_case_is_its_channels_then_its_label(tmp_path: Path) -> None:
    for name in ("image", "label"):
        (tmp_path / name).write_text(name)
    case = Case("c", (tmp_path / "image",), tmp_path / "label", "c")
    assert DigestCache(tmp_path / "cache.json").of_case(case) == [_digest(b"image"), _digest(b"label")]
    (tmp_path / "label").unlink()
    with pytest.raises(DataError, match=r"label: no such file"):
        DigestCache(tmp_path / "cache.json").of_case(case)


def test_the_order_of_keys_names_nothing_else() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})
    assert len(digest_of({})) == 32
