"""Unpack tar, zip and compressed files: nothing outside the folder, nothing without bound, all of it or nothing."""

from __future__ import annotations

import functools
import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import zstandard

from neox.config.errors import UserError
from neox.data.durable import storage_failure
from neox.data.formats.compression import COMPRESSIONS, decompressed

BLOCK = 1 << 20
ENDING = bytes(2 * tarfile.BLOCKSIZE)
"""What a tar file ends with."""
MAX_RATIO = 200
"""Times that an archive may grow, unless the caller allows more: text does up to 20 times, a bomb 1000 and more."""
FREE_BYTES = 64 << 20
"""Bytes that any archive may hold, however small it is."""
HEADER_BYTES = 512
"""What each member counts for beside its data."""
MAX_HEADER = 1 << 20
"""Bytes of a long name or of a member's further attributes in a tar file, which are read into memory."""
SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError),
    *(RuntimeError, ValueError),  # what zipfile says of passwords and unknown methods; names that no file can have
)


@dataclass(frozen=True)
class Member:
    """What an archive has under one name."""

    name: str
    kind: str
    """file, folder, link, or what else it is."""
    target: str
    """Of a link: the member that it is a second name of."""
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, max_ratio: int = MAX_RATIO) -> int:
    """Unpacks .tar, .tar.gz and the like, .zip, or a single compressed file into a new folder; returns the files made.

    A link becomes a copy of the member that it names, which must have come before. The folder appears when all of it
    is there; permissions and owners are not taken over.

    Raises:
        UserError: one line that says what is wrong: a damaged archive, a member that would land elsewhere or is no
            file, more than `max_ratio` times the bytes of the archive, a full disk, a folder that is there already.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists():
        raise UserError(f"{folder}: is there already; unpack {archive.name} into another folder or remove it")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        num_files = _Unpacking(archive, temporary, max_ratio).run()
        temporary.rename(folder)
        return num_files
    except OSError as error:
        if reason := storage_failure(error):
            raise UserError(f"{folder}: {reason}, nothing was unpacked") from error
        raise UserError(f"{archive}: {error.strerror or error}, nothing was unpacked") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Unpacking:
    """One archive on its way into a folder that nobody sees yet."""

    def __init__(self, archive: Path, folder: Path, max_ratio: int) -> None:
        self._archive, self._folder = archive, folder
        self._max_ratio = max_ratio
        self._left = max(FREE_BYTES, max_ratio * archive.stat().st_size)
        self._num_files = 0

    def run(self) -> int:
        """Unpacks it; returns the files made."""
        try:
            for member in self._members():
                self._spend(HEADER_BYTES)
                self._place(member)
        except UserError:
            raise
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._archive}: cannot be read ({reason}); nothing was unpacked") from error
        return self._num_files

    def _members(self) -> Iterator[Member]:
        suffixes = self._archive.suffixes[-2:]
        last = suffixes[-1] if suffixes else ""
        if last == ".zip":
            return _zip_members(self._archive)
        if last == ".tar" or last in SHORT or (suffixes[:1] == [".tar"] and last in COMPRESSIONS):
            return self._tar_members(SHORT.get(last, last))
        if last in COMPRESSIONS:
            return iter([Member(self._archive.stem, "file", "", lambda: self._stream(last))])
        known = ", ".join([".tar", ".zip", *COMPRESSIONS, *SHORT])
        raise UserError(f"{self._archive}: not an archive by its name; what is unpacked ends in {known}")

    def _stream(self, suffix: str) -> IO[bytes]:
        return decompressed(self._archive.open("rb"), suffix)

    def _tar_members(self, suffix: str) -> Iterator[Member]:
        with self._stream(suffix) as stream:
            watched = _Watched(stream)
            with tarfile.open(fileobj=watched, mode="r|", tarinfo=_BoundedInfo) as tar:  # type: ignore[call-overload]
                for info in tar:
                    if info.size < 0:
                        raise tarfile.ReadError(f"a member of {info.size} bytes")
                    yield Member(info.name, _kind(info), _target(info), functools.partial(tar.extractfile, info))
            while block := watched.read(BLOCK):
                self._spend(len(block))
            if watched.tail.strip(b"\0") or len(watched.tail) < len(ENDING):
                raise EOFError("it ends before its end mark")

    def _place(self, member: Member) -> None:
        path = self._inside(member.name, member)
        if member.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.kind == "file":
            with member.open() as source:
                self._copy(source, path)
        elif member.kind == "link":
            target = self._inside(member.target, member)
            if not target.is_file() or target == path:
                raise self._refusal(member, f"is a link to {member.target}, which is no file before it")
            with target.open("rb") as source:
                self._copy(source, path)
        else:
            raise self._refusal(member, f"is a {member.kind}, and only files and folders are unpacked")
        self._num_files += 1

    def _inside(self, name: str, member: Member) -> Path:
        """Where a name of the archive's lies in the folder. Links are never made, so no name leads through one."""
        parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "."]
        depth = 0
        for part in parts:
            depth += -1 if part == ".." else 1
            if depth < 0 or part.startswith("/"):
                raise self._refusal(member, "would land outside the folder")
        return self._folder / os.path.normpath("/".join(parts) or ".")

    def _copy(self, source: IO[bytes], path: Path) -> None:
        with path.open("wb") as file:
            while block := source.read(BLOCK):
                self._spend(len(block))
                file.write(block)

    def _spend(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise UserError(
                f"{self._archive}: holds more than {self._max_ratio} times its own bytes; nothing was unpacked "
                "(--max-ratio allows more)"
            )

    def _refusal(self, member: Member, reason: str) -> UserError:
        return UserError(f"{self._archive}: the member {member.name!r} {reason}; nothing was unpacked")


class _Watched:
    """A stream of a tar file, and the last of what was read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tail = b""

    def read(self, size: int) -> bytes:
        """As of any file."""
        block = self._stream.read(size)
        self.tail = (self.tail + block)[-len(ENDING) :]
        return block


class _BoundedInfo(tarfile.TarInfo):
    """tarfile reads long names and attributes into memory, however long the archive says that they are."""

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_gnulong(self._checked(tar))  # type: ignore[misc]

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_pax(self._checked(tar))  # type: ignore[misc]

    def _checked(self, tar: tarfile.TarFile) -> tarfile.TarFile:
        if self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return tar


def _kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "folder"
    return "link" if info.issym() or info.islnk() else "device"


def _target(info: tarfile.TarInfo) -> str:
    """A symbolic link counts from its own folder, a hard link from the archive's root."""
    return str(PurePosixPath(info.name).parent / info.linkname) if info.issym() else info.linkname


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            kind = "folder" if info.is_dir() else "link" if is_link else "file"
            target = ""
            if is_link:
                with opened.open(info) as file:
                    target = str(PurePosixPath(info.filename).parent / os.fsdecode(file.read(HEADER_BYTES)))
            yield Member(info.filename, kind, target, functools.partial(opened.open, info))
