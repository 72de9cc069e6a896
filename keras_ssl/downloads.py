"""Fetching one large file: with progress, and going on where it broke off."""

import contextlib
import http.client
import os
import urllib.error
import urllib.request

import filelock
from rich import progress

_CHUNK = 2**20


def download(url: str, path: str, attempts: int = 3) -> str:
    """Puts the file at an address to a path, unless it is there.

    What has arrived lies beside the path as `<path>.part` until all has; a later call, also of
    another process, goes on from there if the server still has the same file. Processes that want
    the same file wait for the one that fetches it.

    Args:
        url: the address.
        path: where the file belongs; its folder is made.
        attempts: how often a connection that breaks is made again before that is an error.

    Returns:
        `path`.

    Raises:
        OSError: the address cannot be reached, the download broke off, or the disk is full.
    """
    if os.path.isfile(path):
        return path
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with filelock.FileLock(path + ".lock"):  # stays: whoever waits for it holds this very file
        for left in reversed(range(attempts)):
            if os.path.isfile(path):
                break
            try:
                _fetch(url, path)
            except urllib.error.HTTPError as error:
                if error.code != 416 or not left:  # nothing behind what has arrived: begin again
                    raise
                os.remove(path + ".part")
            except (ConnectionError, TimeoutError, urllib.error.URLError):
                if not left:
                    raise
    return path


def _fetch(url: str, path: str) -> None:
    part, version = path + ".part", path + ".version"
    arrived, known = 0, ""
    if os.path.isfile(part) and os.path.isfile(version):
        arrived = os.path.getsize(part)
        with open(version, encoding="utf-8") as file:
            known = file.read()
    request = urllib.request.Request(url, headers={"User-Agent": "keras_ssl"})
    if arrived and known:
        request.add_header("Range", f"bytes={arrived}-")
        request.add_header("If-Range", known)  # else the server sends the whole new file
    with urllib.request.urlopen(request, timeout=60) as answer:
        if answer.status != 206:
            arrived = 0
        size = answer.headers.get("Content-Length")
        total = None if size is None else arrived + int(size)
        tag = answer.headers.get("ETag") or ""
        with open(version, "w", encoding="utf-8") as file:
            # A weak tag does not promise the same bytes.
            file.write(answer.headers.get("Last-Modified") or "" if tag[:2] in ("", "W/") else tag)
        with open(part, "ab" if arrived else "wb") as file, _bar() as bar:
            task = bar.add_task(os.path.basename(path), total=total, completed=arrived)
            with contextlib.suppress(http.client.IncompleteRead):  # seen by the size
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and os.path.getsize(part) != total:
        raise ConnectionError(f"{os.path.getsize(part):,} of {total:,} bytes arrived")
    os.replace(part, path)
    os.remove(version)


def _bar() -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
