"""Hugging Face safetensors folders: reading slices without reading files, and writing tensor by tensor."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.weights.table import HF_EMBEDDING, HF_HEAD, Box, Shape, hf_shapes

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Name of a data type in a safetensors header.
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies and what its file's header says about it."""

    file: Path
    shape: Shape
    dtype: str


class HfFolder:
    """The tensors of a Hugging Face folder. Opening it reads only the index and the files' headers.

    Raises:
        WeightError: no safetensors, a broken index, an absent or truncated file, or a tensor listed twice.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file in _files(self.folder):
            for name, stored in _read_header(file).items():
                if name in self.tensors:
                    raise WeightError(
                        f"tensor {name} is in both {self.tensors[name].file.name} and {file.name} "
                        f"of {self.folder}; remove one of the files"
                    )
                self.tensors[name] = stored
        _check_index(self.folder, self.tensors)

    def check(self, expected: dict[str, Shape], ignored: Mapping[str, Shape]) -> None:
        """Compare with the tensors that the architecture has, and those that may be there besides.

        Raises:
            WeightError: names the first missing, superfluous, misshapen or unreadable tensor.
        """
        for name, shape in expected.items():
            self._check_tensor(name, shape)
        for name in self.tensors:
            if name in ignored:
                self._check_tensor(name, ignored[name])
            elif name not in expected:
                raise WeightError(
                    f"tensor {name} in {self.tensors[name].file} is not part of the model that config.json "
                    "describes; correct config.json or remove the tensor"
                )

    def _check_tensor(self, name: str, shape: Shape) -> None:
        stored = self.tensors.get(name)
        if stored is None:
            raise WeightError(f"tensor {name} is missing in {self.folder}; download the model again")
        if stored.shape != shape:
            raise WeightError(
                f"tensor {name} in {stored.file} has shape {list(stored.shape)}, but config.json asks for "
                f"{list(shape)}; config.json and weights belong to different models"
            )
        if stored.dtype not in DTYPES:
            raise WeightError(
                f"tensor {name} in {stored.file} has type {stored.dtype}; supported: {', '.join(DTYPES)}. "
                "Convert it, or use the unquantised model"
            )

    def common_dtype(self, names: Iterable[str]) -> torch.dtype:
        """Return the one type of these tensors; WeightError when they differ."""
        first: dict[str, str] = {}
        for name in names:
            first.setdefault(self.tensors[name].dtype, name)
        if len(first) > 1:
            listed = ", ".join(f"{name} is {dtype}" for dtype, name in first.items())
            raise WeightError(f"{self.folder} mixes data types ({listed}); convert all tensors to one type")
        return DTYPES[next(iter(first))]

    def reader(self) -> "SliceReader":
        """Return a context manager that reads boxes of tensors."""
        return SliceReader(self)


def open_hf(arch: Qwen3Architecture, folder: str | Path) -> HfFolder:
    """Open a Hugging Face folder and check that it holds exactly this architecture's tensors.

    A tied model may carry a head all the same (as some published files do); it must then equal the embedding.

    Raises:
        WeightError: names the tensor or file that is wrong.
    """
    stored = HfFolder(folder)
    tied = arch.tied_embeddings
    stored.check(hf_shapes(arch), ignored={HF_HEAD: hf_shapes(arch)[HF_EMBEDDING]} if tied else {})
    return stored


class SliceReader:
    """Reads boxes of tensors. Files stay memory-mapped until the ``with`` block ends.

    Mapped pages that were read count as this process's memory, so a block should be short: one parameter.
    """

    def __init__(self, folder: HfFolder) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> "SliceReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, name: str, box: Box) -> torch.Tensor:
        """Return a view of ``name[box]`` in its stored type, on the CPU; copy it before the block ends."""
        file = self._folder.tensors[name].file
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt", device="cpu"))
        return self._open[file].get_slice(name)[box.slices]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise WeightError(f"weight folder {str(folder)!r} does not exist")
    if (folder / INDEX_FILE).is_file():
        files = [folder / name for name in sorted(set(_weight_map(folder).values()))]
        for file in files:
            if not file.is_file():
                raise WeightError(f"{INDEX_FILE} names {file.name}, which is not in {folder}; download it")
        return files
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    raise WeightError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors weights are read. "
        "Convert other formats with transformers' save_pretrained"
    )


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    try:
        weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightError(f"{path} is not a safetensors index ({error!r}); download it again") from error
    for file in weight_map.values():
        if Path(str(file)).name != file:
            raise WeightError(f"{path} names {file!r}, which is not a file of this folder; download it again")
    return weight_map


def _check_index(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    if not (folder / INDEX_FILE).is_file():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors or tensors[name].file.name != file:
            raise WeightError(f"{INDEX_FILE} says that tensor {name} is in {file}, but it is not; {folder}")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
            return {
                name: StoredTensor(path, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise WeightError(
            f"{path} is truncated or not a safetensors file ({error}); download it again"
        ) from error


@dataclass(frozen=True)
class FilePlan:
    """Names of the tensors of one output file, in order."""

    name: str
    tensors: tuple[str, ...]


def plan_files(shapes: dict[str, Shape], dtype: torch.dtype, max_file_bytes: int) -> list[FilePlan]:
    """Distribute tensors over files of at most ``max_file_bytes`` (a larger tensor has a file of its own)."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = Box((0,) * len(shape), shape).size * dtype.itemsize
        if groups[-1] and used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return [FilePlan(SINGLE_FILE, tuple(groups[0]))]
    total = len(groups)
    names = (f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1))
    return [FilePlan(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def write_files(
    folder: Path,
    tensors: Iterator[tuple[str, torch.Tensor]],
    shapes: dict[str, Shape],
    dtype: torch.dtype,
    max_file_bytes: int,
) -> None:
    """Write tensors, which come in the order of ``shapes``, holding one of them at a time.

    A safetensors header needs only names, shapes and types, which are known before the first tensor comes.
    """
    plans = plan_files(shapes, dtype, max_file_bytes)
    for plan in plans:
        with open(folder / plan.name, "wb") as file:
            file.write(_header({name: shapes[name] for name in plan.tensors}, dtype))
            for name in plan.tensors:
                got, tensor = next(tensors)
                assert got == name and tuple(tensor.shape) == shapes[name], (got, name, tensor.shape)
                _write_tensor(file, tensor.to(dtype))
    if len(plans) > 1:
        _write_index(folder, plans, shapes, dtype)


def _header(shapes: dict[str, Shape], dtype: torch.dtype) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + Box((0,) * len(shape), shape).size * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensor data aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    file.write(memoryview(raw.numpy()))


def _write_index(folder: Path, plans: list[FilePlan], shapes: dict[str, Shape], dtype: torch.dtype) -> None:
    total = sum(Box((0,) * len(shape), shape).size for shape in shapes.values()) * dtype.itemsize
    weight_map = {name: plan.name for plan in plans for name in plan.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
