"""Files that neither reach out of their folder nor are ever seen half written."""

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator

# Where something is written before it takes its place: host and process, to know what was left.
_WORK = re.compile(r"\.unfinished-(.+)-(\d+)-[0-9a-f]{8}")


def inside(folder, name) -> str:
    """The path of a file that some file of a folder names; refused where it leads out.

    Raises:
        ValueError: an absolute path, one that climbs out, or no string.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [".."]
    if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
        raise ValueError(
            "A preset may only name files inside its own folder. "
            f"Received: {name!r} in {os.fspath(folder)!r}"
        )
    return os.path.join(folder, *parts)


def check_links(folder) -> None:
    """Refuses a folder with links to files outside; those of the hub's cache are its own files.

    Raises:
        ValueError: the message names the link and where it leads.
    """
    root = pathlib.Path(os.path.realpath(folder))
    allowed = [root]
    if root.parent.name == "snapshots":  # huggingface_hub keeps the content of all versions apart
        allowed.append(root.parent.parent / "blobs")
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            target = pathlib.Path(os.path.realpath(path))
            if os.path.islink(path) and not any(map(target.is_relative_to, allowed)):
                raise ValueError(
                    f"A preset may only have files inside its own folder: {name} is a link to "
                    f"{os.fspath(target)!r}. Put a copy there. Received: {os.fspath(folder)!r}"
                )


def check_unpacked_size(path, size: int) -> None:
    """Refuses a file that unpacks to over 200 times its size, and over a gigabyte.

    Args:
        path: of the file.
        size: bytes that it says it holds.
    """
    packed = os.path.getsize(path)
    if size > max(2**30, 200 * packed):
        raise ValueError(
            f"The file would unpack to {size:,} bytes from {packed:,}, which weights do not: it is "
            f"damaged or made to fill the memory. Received: path={os.fspath(path)!r}"
        )


@contextlib.contextmanager
def _work_folder(parent) -> Iterator[pathlib.Path]:
    """A new folder in `parent` that is gone afterwards."""
    parent = pathlib.Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    work = parent / f".unfinished-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(folder) -> None:
    """Removes what processes of this machine that were killed left half written in a folder."""
    for name in os.listdir(folder):
        match = _WORK.fullmatch(name)
        if match and match[1] == socket.gethostname() and not _is_alive(int(match[2])):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def whole_file(path) -> Iterator[pathlib.Path]:
    """A path to write to, whose file takes the place of `path` when the block ends.

    If the block ends with an error, or the process is killed, what was at `path` stays as it was.
    The content is on the disk before the name is.

    Args:
        path: the place; folders above it are made.

    Yields:
        A path of the same name in a folder of its own, where more files may be put meanwhile.
    """
    path = pathlib.Path(os.path.abspath(path))
    with _work_folder(path.parent) as work:
        yield work / path.name
        _flush(work / path.name)
        os.replace(work / path.name, path)
        _flush(path.parent)


def check_room(folder, *sizes: int) -> None:
    """Sees to it that files of these sizes have room in a folder, before one is written.

    For what must not run out of room half-way: HDF5 then gives no error, it takes the process
    along. The room is not kept: another process may still fill the disk meanwhile.

    Args:
        folder: there already.
        sizes: bytes of each file.

    Raises:
        OSError: the disk, a quota or the largest size of a file does not allow them.
    """
    free = shutil.disk_usage(folder).free
    try:
        if sum(sizes) > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with contextlib.ExitStack() as files:
            for size in sizes:
                _reserve(files.enter_context(tempfile.TemporaryFile(dir=folder)), size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: nothing was written, what was there before is whole; make room. "
            f"Received: folder={os.fspath(folder)!r}, needed: {sum(sizes):,} bytes, free: {free:,}",
        ) from error


def _reserve(file, size: int) -> None:
    """Takes room on the disk for an empty file, without writing, where Linux can do so.

    Not by `os.posix_fallocate`: where the file system cannot (NFS), it writes every block.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError, TypeError):
        return
    if fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


def _flush(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(folder, stale: tuple[str, ...] = ()) -> Iterator[str]:
    """A new folder beside `folder` that takes its place when the block ends without an error.

    If it ends with one, or the process is killed, the old folder stays as it was.

    Args:
        folder: the place.
        stale: endings of file names that are not taken over from the old folder; everything else
            that the new one does not have itself (a model card) is.

    Yields:
        Path of the new folder.
    """
    folder = os.path.abspath(os.fspath(folder))
    with _work_folder(os.path.dirname(folder)) as work:
        new = os.path.join(work, os.path.basename(folder))
        os.mkdir(new)
        yield new
        if not os.path.isdir(folder):
            os.rename(new, folder)
            return
        for name in os.listdir(folder):
            source, target = os.path.join(folder, name), os.path.join(new, name)
            if not name.endswith(stale) and not os.path.exists(target):
                (shutil.copytree if os.path.isdir(source) else shutil.copy2)(source, target)
        if _exchange(new, folder):
            return
        old = f"{folder}.old-{uuid.uuid4().hex[:8]}"  # not in `work`, which may be swept
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            os.rename(old, folder)
            raise
        shutil.rmtree(old)


def _exchange(one: str, other: str) -> bool:
    """Swaps two folders in one step, where Linux and the file system can: no kill comes between."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    paths = (os.fsencode(one), os.fsencode(other))
    return renameat2(here, paths[0], here, paths[1], ctypes.c_uint(exchange)) == 0
