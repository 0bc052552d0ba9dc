"""A folder that appears under its name when it is whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: str | Path, advice: str = "") -> Iterator[Path]:
    """A folder beside `path` to write into; it takes its place if the block ends well.

    Args:
        path: a folder that does not exist.
        advice: what to do if it does.

    Raises:
        FileExistsError: there is something already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists{advice}")
    making = path.with_name(f"{path.name}.making-{os.getpid()}")
    making.mkdir(parents=True)
    try:
        yield making
        making.rename(path)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
