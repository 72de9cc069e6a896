"""Files that a file names must lie in its own folder."""

import os


def inside(folder: str, name: str) -> str:
    """The path of a file that some file of a folder names; refused where it leads out.

    Raises:
        ValueError: an absolute path, one that climbs out, or no string.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [".."]
    if not name or ".." in parts or os.path.isabs(name) or parts[0] == "" or ":" in parts[0]:
        raise ValueError(
            "A preset may only name files inside its own folder. "
            f"Received: {name!r} in {os.fspath(folder)!r}"
        )
    return os.path.join(folder, *parts)
