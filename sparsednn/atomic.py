"""Files and folders that appear whole or not at all.

Everything is written beside its target and renamed at the end (`os.replace`), so a reader never
sees half a file, and an error, a full disk or Ctrl-C leaves what was there before. Where the file
system can have files without a name (Linux, local ones), a file has none until it is complete, and
even SIGKILL, which is how some launchers end ranks, leaves nothing behind; elsewhere it has a
temporary one. Knows nothing about any file format.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sparsednn.errors import FormatError

__all__ = ["atomic_file", "atomic_folder", "check_target", "folder_for", "remove_temporaries"]

#: Temporary files and folders that this process has now, or will have in a moment.
_in_use: set[str] = set()


def remove_temporaries() -> None:
    """Remove what is being written now: for a process that is about to be ended.

    From any thread, but not from a handler of signals. Whoever is writing goes on into errors.
    """
    for path in tuple(_in_use):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:  # a folder, which systems say in different ways
            shutil.rmtree(path, ignore_errors=True)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise what `atomic_file` would, where that can be known before there is anything to write.

    Raises
    ------
    FormatError
        If `path` is a folder, or its folder is missing or must not be written to.
    """
    shown = Path(path)
    with _naming(shown), _temporary_name(_file_target(shown)) as probe:
        open(probe, "xb").close()
        probe.unlink()


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[Path]:
    """Make a folder, and those above it; what was made goes again if the body raises.

    Raises
    ------
    FormatError
        If the folder cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FormatError(f"{path}: cannot make this folder: {error.strerror}") from error
        yield path
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has put a file into it
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a new file for writing; at the end it gets the name `path`.

    Parameters
    ----------
    path
        The file to make or to replace; a symbolic link is followed. Its folder must exist.
    sync
        Force the bytes to the disk before renaming (``fsync``), so that even a power cut leaves
        either the old or the new file. Meant for checkpoints; slow for gigabytes.

    Yields
    ------
    BinaryIO
        The open file; its `name` is a path by which it can be opened again until the end. If the
        body raises, it is removed and `path` stays as it was.

    Raises
    ------
    FormatError
        For every `OSError` (no folder, no permission, disk full), naming `path`.
    """
    shown = Path(path)
    with _naming(shown):
        target = _file_target(shown)
        with _temporary_name(target) as temporary:
            try:
                with _opened(temporary) as (file, finish):
                    yield file
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                    finish()
                os.replace(temporary, target)
                if sync:
                    _sync_folder(target.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _sync_folder(folder: Path) -> None:
    """Force a rename to the disk; file systems that cannot sync a folder do it themselves."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, belongs: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """Make a temporary folder beside `path`; at the end it becomes `path`, or goes into it.

    If there is no `path` yet, the temporary folder is renamed to it in one step. If there is
    one, nothing in it is ever deleted: the new files are moved into it one by one (each of them
    whole), replacing those of the same name.

    Parameters
    ----------
    path
        The folder. Its parent must exist.
    belongs
        Tells by its name whether a file that is already there would be read as a part of what
        is now being written (``layer-7.npz`` of an older, deeper network). If one is left that
        is not being replaced, this is an error and nothing changes, as the sum would be wrong.

    Yields
    ------
    Path
        The temporary folder to write files into (no folders below it).

    Raises
    ------
    FormatError
        For every `OSError`, naming `path`; if `path` is a file; if old parts would be mixed in.
    """
    shown = Path(path)
    with _naming(shown):
        target = Path(os.path.realpath(shown))
        if target.exists() and not target.is_dir():
            raise FormatError(f"{shown}: cannot write: it is a file, a folder is needed")
        with _temporary_name(target) as temporary:
            temporary.mkdir()
            try:
                with _renaming(temporary, shown):
                    yield temporary
                if target.exists():
                    _move_into(temporary, target, shown, belongs)
                else:
                    os.rename(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def _move_into(
    source: Path, target: Path, shown: Path, belongs: Callable[[str], bool] | None
) -> None:
    new = sorted(os.listdir(source))
    old = sorted(set(os.listdir(target)) - set(new))
    mixed = [name for name in old if belongs is not None and belongs(name)]
    if mixed:
        more = f" and {len(mixed) - 1} more" if len(mixed) > 1 else ""
        raise FormatError(
            f"{shown}: already has {mixed[0]}{more}, which would be read as a part of what is "
            "written now: remove it, or choose another folder"
        )
    for name in new:
        os.replace(source / name, target / name)
    source.rmdir()


def _file_target(shown: Path) -> Path:
    target = Path(os.path.realpath(shown))
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "not a regular file"
        raise FormatError(f"{shown}: cannot write: it is {what}")
    return target


@contextlib.contextmanager
def _temporary_name(target: Path) -> Iterator[Path]:
    """Name for a temporary file or folder, known to `remove_temporaries` while entered."""
    # Hidden, and too unlikely a name to exist; same folder, as a rename cannot cross disks.
    name = f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    path = target.with_name(name)
    _in_use.add(str(path))
    try:
        yield path
    finally:
        _in_use.discard(str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """Open a new file: yields it, and what gives it its name when it is complete."""
    nameless = _nameless(path.parent)
    if nameless is None:
        with open(path, "xb") as file:
            yield file, lambda: None
        return
    try:
        link = f"/proc/self/fd/{nameless}"
        with open(link, "wb") as file:
            # The descriptor, of no use for an absolute path, makes Python call linkat, which alone
            # can follow this link.
            yield file, lambda: os.link(link, path, src_dir_fd=nameless, follow_symlinks=True)
    finally:
        os.close(nameless)


def _nameless(folder: Path) -> int | None:
    """Descriptor of a new file without a name; None where there is no such thing."""
    kind = getattr(os, "O_TMPFILE", None)
    if kind is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, kind | os.O_RDWR, 0o666)
    except OSError:  # of the file system; or of the folder, which a file with a name will tell
        return None


@contextlib.contextmanager
def _renaming(temporary: Path, shown: Path) -> Iterator[None]:
    """Let errors of the body name the folder that the user knows."""
    try:
        yield
    except FormatError as error:
        raise FormatError(str(error).replace(str(temporary), str(shown))) from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into a `FormatError` that names the target."""
    try:
        yield
    except FileNotFoundError as error:
        if not path.absolute().parent.is_dir():
            raise FormatError(
                f"{path}: cannot write: no folder {path.absolute().parent}"
            ) from error
        raise FormatError(f"{path}: cannot write: {error.strerror}") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot write: {error.strerror or error}") from error
