"""Files are written below one directory: whole or not at all, and nowhere else whatever stands in the way."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
import tempfile
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import make_result

from ptc_contracts import CodeArtifact
from roma_bridge.files import Tree, UnwritableError, write_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALLS = ("stat", "open", "mkdir", "link", "rename", "unlink")
"""What the writer asks of the system by name."""


def bound(place: Path) -> None:
    """Leave a socket's file behind."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))


def test_files_are_written_below_the_directory(tmp_path: Path) -> None:
    """Of two with one path, the last counts; writing the same again is fine."""
    result = make_result(("a/b.py", "1"), ("c.py", "2"), ("c.py", "3"))

    written = write_files(result, tmp_path / "out")
    again = write_files(result, tmp_path / "out")

    assert written == again == [tmp_path / "out/a/b.py", tmp_path / "out/c.py"]
    assert tree_of(tmp_path) == {"out/a/b.py": "1", "out/c.py": "3"}


def test_where_one_file_exists_with_other_content_none_is_written(tmp_path: Path) -> None:
    """Half a project is worse than none; the message says what to do."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.py").write_text("mine")
    result = make_result(("a.py", "1"), ("b.py", "2"))

    with pytest.raises(UnwritableError, match=r"out/b\.py exists already: use --force"):
        write_files(result, out)
    assert tree_of(out) == {"b.py": "mine"}

    write_files(result, out, overwrite=True)
    assert tree_of(out) == {"a.py": "1", "b.py": "2"}


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Not even a folder is made beyond it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UnwritableError, match=r"deep\.py was not written: its folder 'link' is a symbolic"):
        write_files(make_result(("link/new/deep.py", "1")), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_place_of_a_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    """Only where replacing was asked for."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.py").symlink_to(tmp_path / "victim")

    with pytest.raises(UnwritableError, match="exists already"):
        write_files(make_result(("a.py", "1")), tmp_path / "out")
    write_files(make_result(("a.py", "1")), tmp_path / "out", overwrite=True)

    assert ((tmp_path / "victim").read_text(), (tmp_path / "out" / "a.py").read_text()) == ("mine", "1")


def test_a_file_with_a_second_name_elsewhere_is_not_changed_there(tmp_path: Path) -> None:
    """A hard link is replaced too, not written through."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.py").hardlink_to(tmp_path / "victim")

    write_files(make_result(("a.py", "1")), tmp_path / "out", overwrite=True)

    assert tree_of(tmp_path) == {"victim": "mine", "out/a.py": "1"}


def test_the_directory_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """The caller named it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")

    write_files(make_result(("a/b.py", "1")), tmp_path / "out")

    assert tree_of(tmp_path / "real") == {"a/b.py": "1"}


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A file is in the way, or a link that leads nowhere or to itself."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere")

    for name in ("file", "file/out", "loop", "astray"):
        with pytest.raises(UnwritableError, match=rf"{name}/a\.py was not written"):
            write_files(make_result(("a.py", "1")), tmp_path / name)


@pytest.mark.parametrize(
    "path",
    [
        "../up.py",
        "a/../../up.py",
        "..",
        "",
        ".",
        "/",
        "a\nb.py",
        "a\x00.py",
        "a\\b.py",
        "c:x.py",
        "a\udc80.py",
    ],
)
def test_a_path_that_nobody_checked_is_refused_and_quoted(tmp_path: Path, path: str) -> None:
    """`model_construct` and changes in place let any pass; a line feed in one forges no line of the message."""
    result = make_result()
    result.artifacts = [CodeArtifact.model_construct(file_path=path, content="1")]

    with pytest.raises(UnwritableError) as refused:
        write_files(result, tmp_path / "out", overwrite=True)

    assert str(refused.value).startswith(f"{path!r} was not written: ")
    assert str(refused.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_an_absolute_path_that_nobody_checked_is_taken_below_the_directory(tmp_path: Path) -> None:
    """As the contract reads it."""
    result = make_result(("a.py", "1"))
    result.artifacts[0].file_path = f"{tmp_path}/victim"

    written = write_files(result, tmp_path / "out")

    assert written == [tmp_path / "out" / str(tmp_path)[1:] / "victim"]
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("folder", Path.mkdir, "a folder is in its place"),
        ("pipe", os.mkfifo, "a pipe, a socket or a device"),
        ("socket", bound, "a pipe, a socket or a device"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_file_is_neither_opened_nor_replaced(
    tmp_path: Path, name: str, made: Callable[[Path], object], reason: str, *, overwrite: bool
) -> None:
    """Opening a pipe would wait for ever, and nobody meant to lose a device."""
    made(tmp_path / name)

    with pytest.raises(UnwritableError, match=f"{name} was not written: {reason}"):
        write_files(make_result((name, "1")), tmp_path, overwrite=overwrite)
    if name != "folder":
        with pytest.raises(UnwritableError, match=r"a\.py was not written: Not a directory"):
            write_files(make_result((f"{name}/a.py", "1")), tmp_path, overwrite=overwrite)
    assert not stat.S_ISREG((tmp_path / name).lstat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    """Not even by root."""
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("a container whose root makes no devices")

    with pytest.raises(UnwritableError, match="a device is in its place"):
        write_files(make_result(("null", "1")), tmp_path, overwrite=True)


@pytest.mark.parametrize("path", ["n" * 300, "d" * 300 + "/a.py", f"{'f' * 200}/" * 21, "é" * 200])
def test_a_name_that_is_too_long_is_an_error(tmp_path: Path, path: str) -> None:
    """For the file system, or for everybody who would open it later; a dry run says so too where it can."""
    with pytest.raises(UnwritableError, match="was not written: File name too long"):
        write_files(make_result((path, "1")), tmp_path)
    assert files_in(tmp_path) == []


def test_text_that_cannot_be_written_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    """Half of a surrogate pair passes every check of a string."""
    with pytest.raises(UnwritableError, match=r"a\.py was not written: its content is no valid text"):
        write_files(make_result(("b.py", "1"), ("new/a.py", "x\ud800")), tmp_path)
    assert files_in(tmp_path) == []


def test_a_folder_that_may_not_be_written_in_is_an_error() -> None:
    """What is there stays as it is."""
    with unprivileged_folder() as folder:
        (folder / "kept.py").write_text("mine")
        folder.chmod(0o555)
        for path in ("a.py", "kept.py", "new/a.py"):
            with pytest.raises(UnwritableError, match="was not written: Permission denied"):
                write_files(make_result((path, "1")), folder, overwrite=True)
        folder.chmod(0o755)

        assert tree_of(folder) == {"kept.py": "mine"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_write_that_breaks_off_leaves_no_half_file(tmp_path: Path, *, overwrite: bool) -> None:
    """What was there is there still."""
    (tmp_path / "old.py").write_text("mine")

    with most_bytes_of_a_file(100_000):
        for name in ("new.py", "old.py") if overwrite else ("new.py",):
            with pytest.raises(UnwritableError, match="was not written: File too large"):
                write_files(make_result((name, "1" * 200_000)), tmp_path, overwrite=overwrite)

    assert tree_of(tmp_path) == {"old.py": "mine"}


def test_modes_are_those_of_the_user_and_of_the_file_before(tmp_path: Path) -> None:
    """A new file has what the umask leaves; a replaced script can still be run, and gains nothing."""
    (tmp_path / "run.sh").write_text("old")
    (tmp_path / "run.sh").chmod(0o4755)
    before = os.umask(0o027)
    try:
        write_files(make_result(("a/new.py", "1"), ("run.sh", "2")), tmp_path, overwrite=True)
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/new.py", "run.sh")]
    assert modes == [0o750, 0o640, 0o755]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("existing", [True, False])
def test_no_moment_is_good_for_putting_a_link_in_place_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, existing: bool, overwrite: bool
) -> None:
    """Before each call that the writer makes: what is beyond the link stays as it was."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "b").mkdir(parents=True)
    (elsewhere / "b" / "victim.py").write_text("mine")

    def swap(out: Path) -> None:
        if (out / "a").exists():
            (out / "a").replace(out / "was")
        (out / "a").symlink_to(elsewhere)

    for at in moments():
        out = tmp_path / f"out{at}"
        folder = (out / "a/b") if existing else out
        folder.mkdir(parents=True)
        with before_call(monkeypatch, at, partial(swap, out)) as came, allowed_to_fail():
            Tree(out).write("a/b/new.py", "1", overwrite=overwrite)
            Tree(out).write("a/b/victim.py", "1", overwrite=overwrite)
        if not came:
            break

        assert tree_of(elsewhere) == {"b/victim.py": "mine"}
    assert at > 10


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("pattern", ["a.py", ".ptc-*"])
def test_no_moment_is_good_for_putting_a_link_in_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, *, overwrite: bool
) -> None:
    """Neither in place of the file nor of its draft: nothing is written through, and no second name made."""
    victim = tmp_path / "victim"
    victim.write_text("mine")

    def swap(out: Path) -> None:
        for place in [*out.glob(pattern)] or [out / "a.py"]:
            place.unlink(missing_ok=True)
            place.symlink_to(victim)

    for at in moments():
        out = tmp_path / f"out{at}"
        out.mkdir()
        with before_call(monkeypatch, at, partial(swap, out)) as came, allowed_to_fail():
            Tree(out).write("a.py", "1", overwrite=overwrite)
        if not came:
            break

        assert (victim.read_text(), victim.stat().st_nlink) == ("mine", 1)
    assert at > 5


def test_nothing_gets_out_while_a_folder_becomes_a_link_and_back(tmp_path: Path) -> None:
    """A race with a thread that does nothing else, until it was won and lost often enough."""
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (out / "a").mkdir(parents=True)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            (out / "a").replace(out / "was")
            (out / "a").symlink_to(elsewhere)
            (out / "a").unlink()
            (out / "was").replace(out / "a")

    swapping = threading.Thread(target=swap)
    swapping.start()
    written = refused = 0
    try:
        while min(written, refused) < 100:
            try:
                Tree(out, make_folders=False).write("a/new.py", "1", overwrite=True)
                written += 1
            except UnwritableError:
                refused += 1
    finally:
        over.set()
        swapping.join()

    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("existing", [True, False])
def test_whatever_call_fails_leaves_a_file_whole_or_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, existing: bool, overwrite: bool
) -> None:
    """No half file, no draft, no open descriptor, and only an error of ours."""

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for at in moments():
        out = tmp_path / f"out{at}"
        (out / "a").mkdir(parents=True)
        if existing:
            (out / "a/b.py").write_text("mine")
        with before_call(monkeypatch, at, fail) as came, allowed_to_fail():
            Tree(out).write("a/b.py", "1", overwrite=overwrite)
        if not came:
            break

        assert open_below(tmp_path) == []
        left = tree_of(out)
        assert left.pop("a/b.py", None) in ({"mine", "1"} if existing else {None, "1"})
        assert not left or came == ["unlink"]
    assert at > 5


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `overwrite`, whoever has the name first has it."""
    for at in moments():
        out = tmp_path / f"out{at}"
        out.mkdir()
        with before_call(monkeypatch, at, partial((out / "a.py").write_text, "mine")) as came:
            written = Tree(out).write("a.py", "1", overwrite=False)
        if not came or came == ["unlink"]:
            break

        assert (written, tree_of(out)) == (False, {"a.py": "mine"})
    assert at > 3


def test_where_there_are_no_hard_links_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On FAT, for one; a file that exists is kept there too."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    tree = Tree(tmp_path)

    assert tree.write("a/b.py", "1", overwrite=False)
    assert not tree.write("a/b.py", "2", overwrite=False)
    assert tree_of(tmp_path) == {"a/b.py": "1"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_where_case_does_not_count_a_file_does_not_replace_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    """A result's `A.py` and `a.py` are two files: on such a file system the second is an error, not a loss."""
    for name in CALLS:
        monkeypatch.setattr(os, name, folding(getattr(os, name)))
    tree = Tree(tmp_path)
    tree.write("src/A.py", "1", overwrite=overwrite)

    with pytest.raises(UnwritableError, match=r"a\.py was not written: it has the same name as .*/src/A\.py"):
        tree.write("src/a.py", "2", overwrite=overwrite)
    tree.write("src/A.py", "3", overwrite=True)
    assert tree_of(tmp_path) == {"src/a.py": "3"}


def test_where_case_counts_both_files_are_there(tmp_path: Path) -> None:
    """They are two names."""
    write_files(make_result(("A.py", "1"), ("a.py", "2")), tmp_path / "out")

    assert tree_of(tmp_path / "out") == {"A.py": "1", "a.py": "2"}


def tree_of(folder: Path) -> dict[str, str]:
    """Read all files of a folder and of those below it."""
    return {str(file.relative_to(folder)): file.read_text() for file in files_in(folder)}


def files_in(folder: Path) -> list[Path]:
    """List what is below a folder and is none, without following links."""
    found = (Path(at) / name for at, folders, files in os.walk(folder) for name in (*folders, *files))
    return [place for place in found if place.is_symlink() or not place.is_dir()]


def open_below(folder: Path) -> list[str]:
    """List what this process has open below a folder: others have theirs elsewhere, and come and go."""
    places = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            places.append(str(descriptor.readlink()))
    return [place for place in places if place.startswith(str(folder))]


def moments() -> Iterator[int]:
    """Count the calls of the writer, one run for each."""
    yield from range(1000)


@contextmanager
def before_call(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """Do something right before the writer's call number `at`; yield a list that then names the call."""
    came: list[str] = []
    seen = iter(range(at + 1))
    real = {name: getattr(os, name) for name in CALLS}

    def hooked(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(seen, None) == at:
                came.append(name)
                with monkeypatch.context() as inner:
                    for each, function in real.items():
                        inner.setattr(os, each, function)
                    act()
            return real[name](*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, hooked(name))
        yield came


@contextmanager
def allowed_to_fail() -> Iterator[None]:
    """Let the writer give up, by its own error only."""
    with suppress(UnwritableError):
        yield


def folding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a call take names that differ in case for one, as some file systems do."""

    def folded(*names: Any, **options: Any) -> Any:
        relative = [n.casefold() if isinstance(n, str) and not n.startswith("/") else n for n in names]
        return function(*relative, **options)

    return folded


@contextmanager
def unprivileged_folder() -> Iterator[Path]:
    """Make a folder, and be its plain user for the time of the block: root may write everywhere."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


@contextmanager
def most_bytes_of_a_file(limit: int) -> Iterator[None]:
    """Let no file grow past a limit for the time of the block: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_link_is_followed_to_a_folder_whose_name_comes_from_others(tmp_path: Path) -> None:
    """A plan may name it, and a checkout may hold the link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UnwritableError, match="symbolic link"):
        write_files(make_result(("a.py", "1")), tmp_path / "out", below="plan", overwrite=True)

    assert list((tmp_path / "elsewhere").iterdir()) == []
    other = write_files(make_result(("a.py", "1")), tmp_path / "out", below="other")
    assert other == [tmp_path / "out/other/a.py"]
