"""A short name that changes with a model folder's content."""

import hashlib
from pathlib import Path

from megatron_srpo.errors import ModelError

#: Of a large file so many slices are read: all of a 7B model would take a minute from a network disk.
SLICES, SLICE_BYTES = 64, 1 << 16
_READ = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")


def folder_digest(folder: Path) -> str:
    """Return a digest of the names, sizes and contents of a model folder's files.

    Large files count by their size and by slices spread evenly over them; other training of the same model
    changes nearly all of its weights, so it is seen. Hidden folders and files of other kinds are left out.

    Raises:
        ModelError: there is no such folder, or a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in folder.rglob("*") if path.suffix in _READ and path.is_file())
        for path in files:
            name = path.relative_to(folder)
            if not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()}\0{path.stat().st_size}\0".encode())
                _add_content(digest, path)
    except OSError as error:
        raise ModelError(f"cannot read the model folder {folder}: {error}") from error
    if not files:
        raise ModelError(f"{folder} is not a model folder: it holds no model files")
    return digest.hexdigest()[:12]


def _add_content(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= SLICES * SLICE_BYTES:
            digest.update(file.read())
            return
        for place in range(SLICES):
            file.seek(place * (size - SLICE_BYTES) // (SLICES - 1))
            digest.update(file.read(SLICE_BYTES))
