"""Writes files below one directory, and never anywhere else."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from ptc_contracts import PTCError
from ptc_contracts.paths import unsafe_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_contracts import PTCArtifactResult

MAX_PATH_BYTES = 4095
"""Longest path that Linux opens; a longer one could be made step by step, and then not be read."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without hard links, such as FAT, say to one."""


class UnwritableError(PTCError):
    """A file cannot be written; the message names it and says why."""


def write_files(
    result: PTCArtifactResult, directory: Path, *, below: str = "", overwrite: bool = False
) -> list[Path]:
    """Write every file of a result below a directory, or below a folder in it; return their paths.

    Whoever calls vouches for the directory. The folder's name may come from others: no link is followed there either.
    Files that exist with other content are kept unless `overwrite` is set; where there is one, nothing is
    written at all. No link is followed out of the directory, and a write that fails leaves no half file.

    Raises:
        UnwritableError: a file cannot be written, or may not be.
    """
    contents = {each.file_path: each.content for each in result.artifacts}  # of two, the last counts
    if below:
        contents = {f"{below}/{path.lstrip('/')}": content for path, content in contents.items()}
    tree = Tree(directory)
    for each in (Tree(directory, dry_run=True), tree):
        for path, content in contents.items():
            if not each.write(path, content, overwrite=overwrite) and not each.holds(path, content):
                taken = f"{each.place_of(path)} exists already"
                raise UnwritableError(f"{taken}: use --force to replace it, or another --output")
    return [tree.place_of(path) for path in contents]


class Tree:
    """A directory that the files of one result are written below.

    The caller vouches for the directory; below it, every folder is opened from the one above it, and files are
    made, replaced and removed by name in an open folder. So no symbolic link is ever followed, not even one that
    is put there between a look and a write.
    """

    def __init__(self, root: Path, *, make_folders: bool = True, dry_run: bool = False) -> None:
        self._root = root.absolute()
        self._make_folders = make_folders
        self._dry_run = dry_run
        self._written: dict[tuple[int, int], Path] = {}

    def place_of(self, path: str) -> Path:
        """Return where a file belongs; leading slashes do not count.

        Raises:
            UnwritableError: the path may not be used.
        """
        below = path.lstrip("/")
        if reason := unsafe_reason(below):
            raise UnwritableError(f"{path!r} was not written: {reason}")
        return self._root / below

    def write(self, path: str, content: str, *, overwrite: bool) -> bool:
        """Write a file, or return False when one exists and is kept.

        A link in the file's place is replaced as any file is. A dry run looks, and changes nothing.

        Raises:
            UnwritableError: the file cannot be written, or may not be.
        """
        place = self.place_of(path)
        try:
            encoded = content.encode()
            with self._folder(place, make=self._make_folders and not self._dry_run) as folder:
                return self._write(folder, place, encoded, overwrite=overwrite)
        except FileNotFoundError as error:
            if self._dry_run and self._make_folders:
                return True
            raise UnwritableError(f"{place} was not written: its folder does not exist") from error
        except OSError as error:
            raise UnwritableError(f"{place} was not written: {error.strerror or error}") from error
        except UnicodeEncodeError as error:
            raise UnwritableError(f"{place} was not written: its content is no valid text") from error

    def holds(self, path: str, content: str) -> bool:
        """Tell whether a file is there with this content."""
        place, expected = self.place_of(path), content.encode()
        try:
            with self._folder(place, make=False) as folder, _opened(place.name, folder) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                return regular and file.read(len(expected) + 1) == expected
        except OSError:
            return False

    @contextmanager
    def _folder(self, place: Path, *, make: bool) -> Iterator[int]:
        """Open the folder of a file, for the time of the block."""
        if len(os.fsencode(place)) > MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if make:
            self._root.mkdir(parents=True, exist_ok=True)
        here = os.open(self._root, _FOLDER)
        try:
            for name in place.parent.relative_to(self._root).parts:
                above, here = here, self._enter(here, name, make=make)
                os.close(above)
            yield here
        finally:
            os.close(here)

    def _enter(self, here: int, name: str, *, make: bool) -> int:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=here)
        try:
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
        except OSError:
            if (found := _found(name, here)) and stat.S_ISLNK(found.st_mode):
                why = f"its folder {name!r} is a symbolic link, which is not followed"
                raise OSError(errno.ELOOP, why) from None
            raise

    def _write(self, folder: int, place: Path, content: bytes, *, overwrite: bool) -> bool:
        found = _found(place.name, folder)
        if found:
            self._check(place, found)
            if not overwrite:
                return False
        if self._dry_run:
            return True
        draft = f".ptc-{os.urandom(8).hex()}"
        try:
            with os.fdopen(os.open(draft, _NEW_FILE, 0o666, dir_fd=folder), "wb") as file:
                file.write(content)
                if found and stat.S_ISREG(found.st_mode):
                    os.fchmod(file.fileno(), found.st_mode & 0o777)
                made = os.fstat(file.fileno())
            self._written[made.st_dev, made.st_ino] = place
            return _named(draft, place.name, folder, overwrite=overwrite)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)

    def _check(self, place: Path, found: os.stat_result) -> None:
        """Refuse what is no file, and a file of this result that the file system takes for this one."""
        twin = self._written.get((found.st_dev, found.st_ino), place)
        if twin != place:
            raise OSError(errno.EEXIST, f"it has the same name as {twin} on this file system")
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, "a folder is in its place")
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise OSError(errno.EEXIST, "a pipe, a socket or a device is in its place")


def _found(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _opened(name: str, folder: int) -> BinaryIO:
    return os.fdopen(os.open(name, _OLD_FILE, dir_fd=folder), "rb")


def _named(draft: str, name: str, folder: int, *, overwrite: bool) -> bool:
    """Give a finished file its name at once; without `overwrite` only if nobody has it by now."""
    if not overwrite:
        try:
            # Not followed: somebody may have put a link in the draft's place.
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
        else:
            return True
    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True
