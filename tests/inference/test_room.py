"""Where accumulators are kept, at the bounds of what they may take."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import cast

import pytest
import torch

from medtrain.inference import room as rooms
from medtrain.inference.room import Room, Store

CPU = torch.device("cpu")


def test_what_just_fits_is_kept_in_memory() -> None:
    needed = 4 * 2000 + 192
    assert not Room(needed).store(2000, temporaries=192, device=CPU).on_disk
    assert Room(needed - 1).store(2000, temporaries=192, device=CPU).on_disk


def test_without_a_bound_half_of_the_free_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "free_memory", lambda: 2 * 4 * 2000)
    assert not Room(None).store(2000, temporaries=0, device=CPU).on_disk
    assert Room(None).store(2001, temporaries=0, device=CPU).on_disk


class Pages:
    """Counts how often pages are given back."""

    def __init__(self) -> None:
        self.given_back = 0

    def madvise(self, option: int) -> None:
        assert option == mmap.MADV_DONTNEED
        self.given_back += 1


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes no such advice")
def test_pages_are_given_back_when_enough_were_touched() -> None:
    pages = Pages()
    store = Store(torch.zeros(1), cast(mmap.mmap, pages), release_at=100)
    counts = []
    for size in (60, 39, 1, 99, 1):
        store.touched(size)
        counts.append(pages.given_back)
    assert counts == [0, 0, 1, 1, 2]  # 60 + 39 + 1 = 100, then from 0 again


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes no such advice")
def test_a_file_never_holds_more_than_a_quarter_of_the_bound_in_memory() -> None:
    store = Room(4096).store(2**12, temporaries=0, device=CPU)
    assert store.on_disk
    pages = Pages()
    store._pages = cast(mmap.mmap, pages)
    store.touched(1023)
    assert pages.given_back == 0
    store.touched(1)
    assert pages.given_back == 1


def test_a_folder_in_memory_holds_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.chdir(disk)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rooms, "_file_system", lambda folder: "ext4" if folder == disk else "tmpfs")
    assert list(rooms._scratch_folders()) == [disk]
