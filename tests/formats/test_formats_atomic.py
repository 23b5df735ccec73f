"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from formats.formats_samples import names

from sparsednn import atomic
from sparsednn.atomic import atomic_file, atomic_folder, remove_temporaries
from sparsednn.errors import FormatError


@pytest.fixture(params=["nameless", "named"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both ways that unfinished files are kept in."""
    if request.param == "named":
        monkeypatch.setattr(atomic, "_nameless", lambda folder: None)
    elif (found := atomic._nameless(tmp_path)) is None:
        pytest.skip(f"the file system of {tmp_path} has no files without a name")
    else:
        os.close(found)
    return str(request.param)


def test_file_is_written_and_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    before: list[str] = []
    for content in (b"one", b"two"):
        with atomic_file(path, sync=True) as file:
            file.write(content)
            beside = set(names(tmp_path)) - set(before)
            assert len(beside) == (kind == "named")
            # By its name it can be opened once more, as memory maps are.
            with open(file.name, "r+b") as again:
                assert os.path.samestat(os.fstat(again.fileno()), os.fstat(file.fileno()))
        assert path.read_bytes() == content
        before = ["a.txt"]
    assert names(tmp_path) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_many_files_leave_none_open(tmp_path: Path) -> None:
    with open(tmp_path / "before", "wb") as file:
        expected = file.fileno()
    for _ in range(3):
        with atomic_file(tmp_path / "a"):
            pass
        with pytest.raises(KeyError), atomic_file(tmp_path / "b"):
            raise KeyError
    with open(tmp_path / "after", "wb") as file:
        assert file.fileno() == expected
    assert atomic._in_use == set()


def test_what_is_being_written_is_removed(tmp_path: Path) -> None:
    """As before the end by a signal; what was there stays."""
    (tmp_path / "a").write_bytes(b"old")

    def write() -> None:
        with atomic_file(tmp_path / "a"), atomic_folder(tmp_path / "f") as folder:
            (folder / "x").write_bytes(b"1")
            remove_temporaries()
            assert names(tmp_path) == ["a"]
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    message = r"a\.txt: cannot write: No space left on device"
    with pytest.raises(FormatError, match=message), atomic_file(path) as file:
        file.write(b"x")
    assert names(tmp_path) == []


def test_target_that_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="it is a folder"), atomic_file(tmp_path):
        pass
    with pytest.raises(FormatError, match="no folder"), atomic_file(tmp_path / "no" / "a"):
        pass
    with pytest.raises(FormatError, match="not a regular file"), atomic_file("/dev/null"):
        pass


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_folder_is_made(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "a").write_bytes(b"1")
        assert not (tmp_path / "f").exists()
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["a"]


def test_folder_that_is_there_keeps_other_files(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.mkdir()
    (target / "notes.txt").write_bytes(b"mine")
    (target / "a").write_bytes(b"old")
    with atomic_folder(target, belongs=lambda name: name == "a") as folder:
        (folder / "a").write_bytes(b"new")
    assert names(target) == ["a", "notes.txt"]
    assert (target / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


def test_folder_refuses_to_mix(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.mkdir()
    (target / "b").write_bytes(b"old")
    writing = atomic_folder(target, belongs=lambda name: len(name) == 1)
    message = "f: already has b, which would be read as a part"
    with pytest.raises(FormatError, match=message), writing as folder:
        (folder / "a").write_bytes(b"new")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["f"]


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "f") as folder:
            (folder / "a").write_bytes(b"1")
            with atomic_file(folder / "no" / "x"):
                pass

    with pytest.raises(FormatError, match="^" + str(tmp_path / "f" / "no" / "x") + ": cannot"):
        write()
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="a folder is needed"), atomic_folder(tmp_path / "file"):
        pass
