"""gravity_core._files: files are written whole or not at all, through links, and nowhere else."""

import contextlib
import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys

import pytest

from gravity_core import _files
from tests.support.limits import HANG

fcntl = pytest.importorskip("fcntl", reason="needs POSIX locks, links and permissions")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def put(path, data=b"new"):
    _files.write({path: lambda file: file.write(data)})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@contextlib.contextmanager
def nobody(folder):
    """Do something without root's rights, in a folder that all may enter."""
    for parent in [folder, *folder.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# Links, permissions, and what is no file


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if there:
        target.write_bytes(b"old")
    (tmp_path / "far" / "middle").symlink_to("target")
    (tmp_path / "link").symlink_to(os.path.join("far", "middle"))
    put(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "middle").is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["middle", "target"]


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"loop'$") as caught:
        put(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == ["loop"]


def made(folder, kind):
    """Make something that is no regular file; return its path."""
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            place = os.getcwd()
            os.chdir(folder)  # its name must be short
            server.bind(kind)
            os.chdir(place)
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero
        except OSError:
            pytest.skip("may not make devices")
    return path


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_refused(tmp_path, kind, linked):
    path = made(tmp_path, kind)
    before = path.stat()
    asked = tmp_path / "link" if linked else path
    if linked:
        asked.symlink_to(kind)
    said = "Is a directory" if kind == "folder" else f"must be a regular file, got a {kind}"
    for use in (put, _files.check_writable, lambda path: _files.open_regular(path).__enter__()):
        with pytest.raises(OSError, match=said) as caught:
            use(asked)
        assert caught.value.filename == str(asked)
        assert caught.value.errno == (errno.EISDIR if kind == "folder" else errno.EINVAL)
    assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before.st_mode)
    assert len(names(tmp_path)) == 1 + linked


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_an_input_may_be_a_pipe_without_a_name_and_no_other(tmp_path):
    """`<(…)` of a shell is one; a pipe with a name may have no writer."""
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    with _files.open_input(f"/dev/fd/{reader}") as file:
        assert file.read() == b"text"
    os.close(reader)
    put(tmp_path / "file")
    with _files.open_input(tmp_path / "file") as file:
        assert file.read() == b"new"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="must be a regular file, got a pipe") as caught:
        _files.open_input(tmp_path / "fifo").__enter__()
    assert caught.value.filename == str(tmp_path / "fifo")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_pipe_without_a_name_is_refused():
    """/dev/stdout may lead to one."""
    ends = os.pipe()
    try:
        with pytest.raises(OSError, match="must be a regular file, got a pipe: '/dev/fd"):
            _files.check_writable(f"/dev/fd/{ends[1]}")
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
@pytest.mark.parametrize("named", [True, False])
def test_an_open_file_is_refused_by_its_number(tmp_path, named):
    """/dev/stdout is one: the file there would be replaced, and what is printed lost."""
    (tmp_path / "folder").mkdir()
    with (tmp_path / "a").open("w+b") as file:
        if not named:
            (tmp_path / "a").unlink()
        link = tmp_path / "folder" / "link"
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        for path in (f"/dev/fd/{file.fileno()}", str(link)):
            for use in (_files.check_writable, _files.destination, put):
                with pytest.raises(OSError, match="must be the name of a file, got one") as caught:
                    use(path)
                assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, path)
        file.write(b"still")
        file.flush()
        assert os.pread(file.fileno(), 9, 0) == b"still"
        assert names(tmp_path) == ["a"] * named + ["folder"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_an_existing_file_keeps_its_permissions(tmp_path, monkeypatch, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    seen, copystat = [], shutil.copystat
    monkeypatch.setattr(
        shutil, "copystat", lambda a, b: (seen.append(os.stat(b).st_mode), copystat(a, b))
    )
    _files.write({path: lambda file: seen.append(os.fstat(file.fileno()).st_mode)})
    assert stat.S_IMODE(path.stat().st_mode) == mode
    # Nobody else may ever open the file that replaces a private one.
    assert [stat.S_IMODE(found) for found in seen] == [0o600, mode]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_a_new_file_has_the_usual_permissions(tmp_path, umask):
    before = os.umask(umask)
    try:
        put(tmp_path / "a")
        (tmp_path / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("there", ["fifo", "file", "folder", "nothing"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_path_through_a_missing_folder_is_refused(tmp_path, there, linked):
    """As `open` refuses it: "missing/../name" is not "name"."""
    target = tmp_path / there
    if there == "fifo":
        os.mkfifo(target)
    elif there == "file":
        target.write_bytes(b"old")
    elif there == "folder":
        target.mkdir()
    path = os.path.join(tmp_path, "missing", "..", there)
    if linked:
        os.symlink(path, tmp_path / "link")
        path = tmp_path / "link"
    before = {p.name: p.lstat() for p in tmp_path.iterdir()}
    for use in (put, _files.check_writable):
        with pytest.raises(FileNotFoundError) as error:
            use(path)
        assert error.value.filename == os.fspath(path)
    assert {p.name: p.lstat() for p in tmp_path.iterdir()} == before


def test_links_to_what_is_not_there_yet_are_followed(tmp_path):
    (tmp_path / "sub").mkdir()
    os.symlink("sub/../second", tmp_path / "first")
    os.symlink("sub/end", tmp_path / "second")
    put(tmp_path / "first")
    assert (tmp_path / "sub" / "end").read_bytes() == b"new"
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()


@as_root
def test_an_existing_file_keeps_its_owner(tmp_path):
    put(tmp_path / "a", b"old")
    os.chown(tmp_path / "a", 12345, 54321)
    put(tmp_path / "a")
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid) == (12345, 54321)


@as_root
@pytest.mark.parametrize("member", [False, True])
def test_a_writer_who_may_not_give_files_away_keeps_the_group_or_shuts_it_out(tmp_path, member):
    tmp_path.chmod(0o777)
    put(tmp_path / "a", b"old")
    os.chown(tmp_path / "a", 65533 if member else 65534, 54321)
    (tmp_path / "a").chmod(0o660)
    groups = os.getgroups()
    try:
        os.setgroups([54321] if member else [])
        with nobody(tmp_path):
            put(tmp_path / "a")
    finally:
        os.setgroups(groups)
    found = (tmp_path / "a").stat()
    assert (found.st_gid == 54321, oct(found.st_mode)) == (
        member,
        f"0o100{'66' if member else '60'}0",
    )


@as_root
def test_the_file_of_somebody_else_may_be_written_where_all_may(tmp_path):
    """It then belongs to the writer, who may not give files away."""
    tmp_path.chmod(0o777)
    put(tmp_path / "a", b"old")
    (tmp_path / "a").chmod(0o666)
    with nobody(tmp_path):
        put(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_uid == 65534


@as_root
def test_a_write_protected_file_or_folder_is_refused(tmp_path):
    open_folder, closed = tmp_path / "open", tmp_path / "closed"
    for folder in (open_folder, closed):
        folder.mkdir()
        put(folder / "a", b"old")
        os.chown(folder / "a", 65534, -1)
    open_folder.chmod(0o777)
    (open_folder / "a").chmod(0o444)
    closed.chmod(0o555)
    for path in (open_folder / "a", closed / "a", closed / "b"):
        for use in (put, _files.check_writable):
            with nobody(tmp_path), pytest.raises(PermissionError) as caught:
                use(path)
            assert str(caught.value) == f"[Errno 13] Permission denied: '{path}'"
        with nobody(tmp_path), pytest.raises(PermissionError) as caught:
            _files.destination(open_folder / "a")
        assert str(caught.value) == f"[Errno 13] Permission denied: '{open_folder / 'a'}'"
    assert (open_folder / "a").read_bytes() == (closed / "a").read_bytes() == b"old"


# Whole or not at all


def test_the_disk_has_the_content_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def noted(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append((kind, os.fstat(descriptor).st_size if kind == "file" else None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    put(tmp_path / "a", b"12345")
    assert done == [("file", 5), "replace", ("folder", None)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_an_error_only_if_the_disk_fails(
    tmp_path, monkeypatch, number
):
    fsync = os.fsync

    def fails(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "no flush")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    fatal = number == errno.EIO
    with pytest.raises(OSError, match="no flush") if fatal else contextlib.nullcontext():
        put(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


def raising(error, *, after=b"half"):
    def content(file):
        file.write(after)
        raise error

    return content


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), MemoryError(), KeyboardInterrupt()]
)
def test_an_error_leaves_all_files_as_they_were(tmp_path, error):
    put(tmp_path / "a", b"old")
    contents = {
        tmp_path / "a": lambda file: file.write(b"new"),
        tmp_path / "b": raising(error),
        tmp_path / "c": None,
    }
    put(tmp_path / "c", b"old")
    with pytest.raises(type(error)) as caught:
        _files.write(contents)
    assert names(tmp_path) == ["a", "c"]
    assert (tmp_path / "a").read_bytes() == b"old"
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] No space: '{tmp_path / 'b'}'"


def test_a_move_that_fails_names_the_path_that_was_asked_for(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        _files.write({tmp_path / "a": lambda file: (tmp_path / "a").mkdir()})
    assert str(caught.value) == f"[Errno 21] Is a directory: '{tmp_path / 'a'}'"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """What the buffer holds meets the limit only when it is flushed."""
    put(tmp_path / "a", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            put(tmp_path / "a", b"n" * 101)
        with pytest.raises(OSError, match="File too large"):
            put(tmp_path / "a", b"n" * 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_several_files_are_replaced_and_removed_together(tmp_path):
    put(tmp_path / "old")
    contents = {tmp_path / "a": lambda f: f.write(b"1"), tmp_path / "old": None}
    _files.write(contents | {tmp_path / "b": lambda f: f.write(b"2"), tmp_path / "never": None})
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("failing", ["b", "d"])
def test_files_that_were_moved_are_put_back_if_a_later_move_fails(tmp_path, monkeypatch, failing):
    """A sticky folder refuses it late, and so does a file that a container mounts."""
    replace = os.replace

    def refused(a, b):
        if b.endswith(failing):
            raise OSError(errno.EBUSY, "Device or resource busy", a, None, b)
        replace(a, b)

    for name in "acd":
        put(tmp_path / name, b"old")
    (tmp_path / "a").chmod(0o640)
    os.utime(tmp_path / "a", (1, 2))
    monkeypatch.setattr(os, "replace", refused)
    contents = {tmp_path / name: lambda f: f.write(b"new") for name in ("a", "b", "d")}
    with pytest.raises(OSError, match=f"busy: '{tmp_path / failing}'$"):
        _files.write({tmp_path / "c": None} | contents)
    assert names(tmp_path) == ["a", "c", "d"]
    assert {(tmp_path / name).read_bytes() for name in "acd"} == {b"old"}
    found = (tmp_path / "a").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o640, 2)


@as_root
def test_a_sticky_folder_with_the_file_of_somebody_else_keeps_all_files(tmp_path):
    for name, owner in (("a", 65534), ("b", 0)):
        put(tmp_path / name, b"old")
        os.chown(tmp_path / name, owner, -1)
        (tmp_path / name).chmod(0o666)
    os.chown(tmp_path, 12345, -1)
    with nobody(tmp_path):
        os.seteuid(0)
        tmp_path.chmod(0o1777)
        os.seteuid(65534)
        with pytest.raises(PermissionError, match=f"{tmp_path / 'b'}'$"):
            _files.write({tmp_path / name: lambda f: f.write(b"new") for name in "ab"})
    assert names(tmp_path) == ["a", "b"]
    assert {(tmp_path / name).read_bytes() for name in "ab"} == {b"old"}


def test_the_longest_name(tmp_path):
    put(tmp_path / ("x" * 255))
    assert names(tmp_path) == ["x" * 255]


def test_a_check_changes_nothing(tmp_path):
    put(tmp_path / "a", b"old")
    before = (tmp_path / "a").stat()
    assert _files.check_writable(os.path.relpath(tmp_path / "a")) == os.path.realpath(
        tmp_path / "a"
    )
    assert _files.check_writable(tmp_path / "new") == os.path.realpath(tmp_path / "new")
    assert (tmp_path / "a").stat() == before
    assert names(tmp_path) == ["a"]
    for path in (tmp_path / "a" / "b", tmp_path / "none" / "b", "", "c/"):
        with pytest.raises(OSError, match=r": '.*'$"):
            _files.check_writable(path)


# What killed processes leave

DYING = """
import os, signal, sys
from gravity_core import _files

def dies(file):
    file.write(bytes(10**6))
    os.kill(os.getpid(), number)

for path, number in zip(sys.argv[1:], (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP), strict=True):
    if not os.fork():
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
        _files.write({path: dies})
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -number
"""


def hidden(folder):
    return [name for name in names(folder) if name.startswith(".gravity-")]


def test_the_next_write_removes_what_killed_ones_left(tmp_path):
    put(tmp_path / "a", b"old")
    paths = [tmp_path / name for name in "abc"]
    subprocess.run([sys.executable, "-c", DYING, *paths], check=True, timeout=HANG)
    assert names(tmp_path) == [*hidden(tmp_path), "a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    (tmp_path / ".gravity-of-somebody").write_bytes(b"")
    for left, path in zip((3, 2, 1), paths, strict=True):
        assert len(hidden(tmp_path)) == 1 + left
        put(path)  # those of another file are that file's business
    assert names(tmp_path) == [".gravity-of-somebody", "a", "b", "c"]


def test_a_link_with_the_name_of_what_killed_ones_left_stays(tmp_path):
    def content(file):
        link.append(os.path.join(tmp_path, os.path.basename(file.name)[:-1] + "x"))
        os.symlink("victim", link[0])

    link = []
    put(tmp_path / "victim", b"precious")
    _files.write({tmp_path / "a": content})
    put(tmp_path / "a")
    assert os.readlink(link[0]) == "victim"
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_file_is_locked_until_it_is_in_its_place(tmp_path, monkeypatch):
    """Otherwise another process may take it for dead."""
    replace, moved = os.replace, []

    def checked(a, b):
        with open(a, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        moved.append(b)
        replace(a, b)

    monkeypatch.setattr(os, "replace", checked)
    put(tmp_path / "a")
    assert moved == [os.path.realpath(tmp_path / "a")]


def test_two_writers_at_a_time_do_not_disturb_each_other(tmp_path):
    def content(file):
        put(tmp_path / "a", b"the other's")
        assert (tmp_path / "a").read_bytes() == b"the other's"
        assert os.path.exists(file.name)
        file.write(b"the last one's")

    _files.write({tmp_path / "a": content})
    assert (tmp_path / "a").read_bytes() == b"the last one's"
    assert names(tmp_path) == ["a"]


def test_a_file_that_another_replaces_meanwhile_still_has_its_name(tmp_path, monkeypatch):
    put(tmp_path / "a", b"old")
    stat, calls = os.stat, []

    def replaced(path, **options):
        found = stat(path, **options)
        calls.append(path)
        if len(calls) == 1:
            (tmp_path / "b").write_bytes(b"new")
            os.replace(tmp_path / "b", tmp_path / "a")
        return found

    monkeypatch.setattr(os, "stat", replaced)
    assert _files.destination(tmp_path / "a") == os.path.realpath(tmp_path / "a")
    assert len(calls) > 2


@pytest.mark.parametrize("when", ["before the lock", "at the lock"])
def test_a_file_that_another_takes_for_dead_is_made_again(tmp_path, monkeypatch, when):
    flock, calls = fcntl.flock, []

    def late(file, operation):
        calls.append(file.name)
        if len(calls) == 1:
            os.unlink(file.name)
            if when == "at the lock":
                raise BlockingIOError
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    put(tmp_path / "a")
    assert len(set(calls)) == 2
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_without_locks_nothing_is_taken_for_dead(tmp_path, monkeypatch):
    used = []
    _files.write({tmp_path / "a": lambda file: used.append(file.name)})
    dead, now = used[0], fcntl.flock

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    for flock, left in ((none, True), (now, False)):
        monkeypatch.setattr(fcntl, "flock", flock)
        with open(dead, "wb"):
            put(tmp_path / "a", b"without")
        assert os.path.exists(dead) is left
        assert (tmp_path / "a").read_bytes() == b"without"
