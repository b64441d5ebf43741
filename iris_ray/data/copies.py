"""Data that lie in storage elsewhere, brought here."""

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import config
from filelock import FileLock
from pyarrow import fs

from iris_ray.errors import DataError, first_line
from iris_ray.storage import CREDENTIALS, resolve

FOLDER = "iris-ray-copies"


def copied(uri: str) -> Path:
    """A copy of the file or folder at `uri`, in the cache of `datasets`.

    Made anew only if sizes or times of change are others there. Raises `DataError` if nothing is there or it
    cannot be read.
    """
    try:
        filesystem, path = resolve(uri, "data.path")
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            raise DataError(f"data.path={uri}: nothing lies there. Check the name.")
        is_folder = found.type == fs.FileType.Directory
        files = filesystem.get_file_info(fs.FileSelector(path, recursive=True)) if is_folder else [found]
        state = sorted((file.path, file.size, file.mtime_ns) for file in files if file.is_file)
        key = sha256(repr((uri, state)).encode()).hexdigest()[:16]
        copy = Path(config.HF_DATASETS_CACHE) / FOLDER / key / found.base_name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.parent / ".lock"):  # another run may want the same
            if not copy.exists():
                _copy(filesystem, found, copy)
    except OSError as error:
        raise DataError(
            f"data.path={uri}: cannot be read ({first_line(error)}). Check the name, the network and what "
            f"you may read there; {CREDENTIALS}."
        ) from error
    return copy


def _copy(filesystem: fs.FileSystem, found: fs.FileInfo, copy: Path) -> None:
    # Under its name only when it is whole.
    with TemporaryDirectory(dir=copy.parent) as folder:
        part = Path(folder) / found.base_name
        if found.type == fs.FileType.Directory:
            part.mkdir()
        fs.copy_files(found.path, str(part), filesystem, fs.LocalFileSystem())
        part.rename(copy)
