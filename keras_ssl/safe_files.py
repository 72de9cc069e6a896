"""Files that neither reach out of their folder nor are ever seen half written."""

import contextlib
import os
import shutil
import uuid


def inside(folder, name) -> str:
    """The path of a file that some file of a folder names; refused where it leads out.

    Raises:
        ValueError: an absolute path, one that climbs out, or no string.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [".."]
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise ValueError(
            "A preset may only name files inside its own folder. "
            f"Received: {name!r} in {os.fspath(folder)!r}"
        )
    return os.path.join(folder, *parts)


@contextlib.contextmanager
def replacing(folder, stale: tuple[str, ...] = ()):
    """A new folder beside `folder` that takes its place when the block ends without an error.

    If it ends with one, the old folder stays as it was.

    Args:
        folder: the place.
        stale: endings of file names that are not taken over from the old folder; everything else
            that the new one does not have itself (a model card) is.

    Yields:
        Path of the new folder.
    """
    folder = os.path.abspath(os.fspath(folder))
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    new = f"{folder}.new-{uuid.uuid4().hex[:8]}"
    os.mkdir(new)
    try:
        yield new
        if not os.path.isdir(folder):
            os.rename(new, folder)
            return
        for name in os.listdir(folder):
            source, target = os.path.join(folder, name), os.path.join(new, name)
            if not name.endswith(stale) and not os.path.exists(target):
                (shutil.copytree if os.path.isdir(source) else shutil.copy2)(source, target)
        old = new.replace(".new-", ".old-")
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            os.rename(old, folder)
            raise
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
