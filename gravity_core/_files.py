"""Write files whole or not at all, and open none but regular ones.

Guarantees of `write`: after an error, a kill or a full disk, each file has its old content or its
new content, whole. Symbolic links stay, and the file that they name is written. An existing file
keeps its permissions; a new one has the usual ones. What killed processes left is removed.
"""

import contextlib
import errno
import hashlib
import io
import os
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]
Content = Callable[[BinaryIO], object]

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# Some file systems cannot flush a folder, and some folders may be entered but not read.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def as_text(path: object) -> str:
    """Return a path that a user gave as text.

    Raises:
        TypeError: unless it is a str, bytes or an os.PathLike. An integer would be the descriptor
            of an open file.
        ValueError: if it cannot be the name of a file.
    """
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"path must be a str or an os.PathLike, got {path!r}") from None
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    else:
        valid = "\0" not in text
    if not valid:
        raise ValueError(f"path must be a possible name of a file, got {path!r}")
    return text


def write(contents: Mapping[StrPath, Content | None]) -> None:
    """Write files, all of them or none.

    All contents are on the disk before the first file is replaced. If a later one cannot be, the
    earlier ones get their old content again; only a kill between two moves leaves both kinds. Hard
    links are not kept: the other names of a file keep its old content.

    Args:
        contents: for each path a function that writes the content to a binary file, or None to
            remove the file.

    Raises:
        OSError: naming the path.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "a")
        >>> write({path: lambda file: file.write(b"whole")})
        >>> with open(path, "rb") as file:
        ...     file.read()
        b'whole'
    """
    with contextlib.ExitStack() as stack:
        moves: list[tuple[StrPath, str, BinaryIO | None]] = []
        for path, content in contents.items():
            with _naming(path):
                target, file = destination(path), None
                if content is not None:
                    file = stack.enter_context(_scratch(target))
                    content(file)
                    file.flush()
                    os.fsync(file.fileno())
                moves.append((path, target, file))
        old: list[BinaryIO | None] = []
        for path, target, _ in moves[:-1]:  # after the last move, nothing is left to fail
            with _naming(path):
                old.append(_copied(target, stack))
        with _uninterrupted(), contextlib.ExitStack() as undo:
            for (path, target, file), before in zip(moves, [*old, None], strict=True):
                _move(path, target, file)
                undo.callback(_move, path, target, before)
            undo.pop_all()
    for folder in dict.fromkeys(os.path.dirname(target) for _, target, _ in moves):
        _flush_folder(folder)


def check_writable(path: StrPath) -> str:
    """Return the absolute path of the file that `write` would replace, or raise what it would.

    Raises:
        OSError: naming the path.
    """
    with _naming(path):
        target = destination(path)
        with _scratch(target):
            return target


def destination(path: StrPath) -> str:
    """Return the absolute path of the regular file that `path` names, or will name, after links.

    Raises:
        OSError: if it is something else, or if it must not be written to.
    """
    while True:
        try:
            target, found = os.path.realpath(path), os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                path = os.path.join(os.path.dirname(path), os.readlink(path))
                continue
            folder, name = os.path.split(path)
            if not name:  # none, or one that ends in a slash
                raise
            # Strictly: without it, ".." would leave a folder that is not there.
            return os.path.join(os.path.realpath(folder, strict=True), name)
        _check_regular(found, path)
        _check_named(path)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(found, os.stat(target)):
                break
        # Another writer has replaced the file meanwhile.
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return target


@contextlib.contextmanager
def open_regular(path: StrPath) -> Iterator[BinaryIO]:
    """Open a regular file for reading; refuse pipes and devices, which may have no end.

    Raises:
        OSError: naming the path, if it cannot be opened or is not a regular file, and while it is
            read.
    """

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # to wait for no writer

    with _naming(path):
        _check_regular(os.stat(path), path)  # to open some devices has effects
        with open(path, "rb", opener=opener) as file:
            _check_regular(os.fstat(file.fileno()), path)
            yield file


@contextlib.contextmanager
def open_input(path: StrPath) -> Iterator[BinaryIO]:
    """Open a regular file for reading, or a pipe without a name, which a shell's ``<(…)`` is.

    A pipe with a name may have no writer, and opening it would wait for one.

    Raises:
        OSError: as `open_regular`.
    """
    with _naming(path):
        is_pipe, target = stat.S_ISFIFO(os.stat(path).st_mode), os.path.realpath(path)
        if not is_pipe or (os.path.exists(target) and not target.startswith("/dev/fd/")):
            with open_regular(path) as file:
                yield file
        else:
            with open(path, "rb") as file:
                yield file


def _check_regular(found: os.stat_result, path: StrPath) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        # It is an OSError and a ValueError.
        raise io.UnsupportedOperation(
            errno.EINVAL, f"must be a regular file, got {kind}", os.fspath(path)
        )


def _check_named(path: StrPath) -> None:
    """Raise if links lead to an open file of a process, as /dev/stdout does.

    It may have no name any more. If it has one, whoever has it open would go on to write to what
    was replaced.
    """
    link = os.fspath(path)
    while os.path.islink(link):
        folder = os.path.dirname(link)
        if os.path.realpath(folder).startswith("/proc/"):
            raise io.UnsupportedOperation(
                errno.EINVAL, "must be the name of a file, got one that is open", os.fspath(path)
            )
        link = os.path.join(folder, os.readlink(link))


@contextlib.contextmanager
def _naming(path: StrPath) -> Iterator[None]:
    """Let errors name `path`, not a file beside it or none."""
    try:
        yield
    except OSError as error:
        if error.filename2 is not None:  # of a file beside it, moved to its place
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        if error.errno is not None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def _scratch(target: str) -> Iterator[BinaryIO]:
    """Open a file beside `target` that replaces it later; remove it at the end if it is left."""
    folder, name = os.path.split(target)
    # A hash, because a name may have the greatest length already.
    prefix = f".gravity-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}-"
    _remove_dead(folder, prefix)
    file = _locked(os.path.join(folder, prefix), private=os.path.exists(target))
    try:
        with contextlib.suppress(FileNotFoundError):
            _like(target, file.name)
        yield file
    finally:
        with contextlib.suppress(OSError):  # what is buffered may not fit on the disk
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def _locked(prefix: str, *, private: bool) -> BinaryIO:
    """Create a file and lock it; the kernel frees the lock when the process ends, however."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags, 0o600 if private else 0o666)

    while True:
        with contextlib.ExitStack() as stack:
            path = prefix + secrets.token_hex(8)
            file = stack.enter_context(open(path, "xb", opener=opener))
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lost = not os.path.exists(path)
            except BlockingIOError:
                lost = True
            except OSError:  # a file system without locks: nothing there is taken for dead
                lost = False
            if not lost:
                stack.pop_all()
                return file
            # Another process took it for dead before it was locked.


def _remove_dead(folder: str, prefix: str) -> None:
    """Remove the files that killed processes left: those that nobody has locked."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(prefix):
                _remove_if_dead(os.path.join(folder, name))


def _remove_if_dead(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A file that has since been moved to its place is no longer under this name.
            os.unlink(path)
        finally:
            os.close(descriptor)


def _like(target: str, path: str) -> None:
    """Give a new file the owner, the group, the permissions and the attributes of an existing one.

    Only root may give files away, and others may give them to their own groups. If the group stays
    another one, it may do with the file what everybody may.
    """
    found = os.stat(target)
    for owner in (found.st_uid, -1) if hasattr(os, "chown") else ():
        with contextlib.suppress(OSError):
            os.chown(path, owner, found.st_gid)
            break
    shutil.copystat(target, path)
    if os.stat(path).st_gid != found.st_gid:
        everybody = found.st_mode & stat.S_IRWXO
        os.chmod(path, stat.S_IMODE(found.st_mode) & ~stat.S_IRWXG | everybody << 3)


def _copied(target: str, stack: contextlib.ExitStack) -> BinaryIO | None:
    """Return a copy beside a file, which the stack removes if it is left; None of no file."""
    try:
        with open_regular(target) as source:
            file = stack.enter_context(_scratch(target))
            shutil.copyfileobj(source, file)
        file.flush()
        _like(target, file.name)  # once more, for its times
    except FileNotFoundError:
        return None
    return file


def _move(path: StrPath, target: str, file: BinaryIO | None) -> None:
    """Move a file to its place, or remove what is there."""
    with _naming(path):
        if file is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            return
        if fcntl is None:  # Windows moves no open file
            file.close()
        os.replace(file.name, target)


def _flush_folder(folder: str) -> None:
    """Make the disk keep a folder's new entries; Windows cannot."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, what else asks a process to end, and all handlers of Python back to the end."""
    caught: set[int] = set()

    def deliver(number: int) -> None:
        if number in caught:
            signal.raise_signal(number)

    handlers: dict[int, Any] = {}
    with contextlib.ExitStack() as delivery:  # all, whatever the first raises
        try:
            for number, handler in _held():
                delivery.callback(deliver, number)
                handlers[number] = handler
                signal.signal(number, lambda number, _: caught.add(number))
            yield
        finally:
            try:
                _restore(handlers)
            finally:
                _restore(handlers)  # one that is back may have raised


def _held() -> list[tuple[int, Any]]:
    """Return the signals to hold back, with their handlers. Only the main thread may set those."""
    if threading.current_thread() is not threading.main_thread():
        return []
    ending = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
    found = [(number, signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    # None is a handler that is not Python's, and cannot be set again.
    return [(n, f) for n, f in found if f is not None and (callable(f) or n in ending)]


def _restore(handlers: dict[int, Any]) -> None:
    while handlers:
        number, handler = next(iter(handlers.items()))
        signal.signal(number, handler)
        del handlers[number]
