"""Where paths and URIs lie: on disks, or in storage that pyarrow or fsspec knows."""

from pathlib import Path

import fsspec
from pyarrow import ArrowInvalid, fs

from iris_ray.errors import ConfigError

CREDENTIALS = "credentials come from the environment, such as AWS_ACCESS_KEY_ID"


def resolve(path: str, field: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it. `field` is the setting that names it.

    Raises `ConfigError` for a kind of storage that nothing installed knows.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).absolute())
    try:
        return fs.FileSystem.from_uri(path)
    except ArrowInvalid:  # not one of pyarrow's own kinds
        pass
    try:
        filesystem, found = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{field}={path}: no such kind of storage ({error}). Give a path that all nodes which use it "
            "see, or a URI that pyarrow or an installed fsspec package knows, such as s3:// or gs://."
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), found
