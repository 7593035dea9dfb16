"""What a file of torch.save asks for, read before anything is made of it, and without executing it.

A pickle can ask for any amount of memory in a few bytes: a tensor larger than its storage, a storage larger than the
file, a call that allocates. So its opcodes are followed here first. They may only call what a state dict, and the plain
values around it, consist of, and every storage and tensor must lie within the file's bytes.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from chexseg_ray.errors import shortened

_STORAGES = {
    "Float": 4,
    "Double": 8,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}  # bytes of an element
_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # begins a file that torch wrote before version 1.6
_SCALARS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class _Global:
    """A name that a pickle refers to, such as `collections.OrderedDict`."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage that a pickle refers to: its key in the file, bytes of an element, and number of elements."""

    key: str
    itemsize: int
    numel: int


class _Opaque:
    """The result of a call that is allowed, and whose value does not matter here."""


class RefusedFileError(Exception):
    """A file asks for something else than plain weights; the message says what, and what to do."""


def check_torch_file(data: bytes) -> None:
    """Check what a file of torch.save asks for.

    Args:
        data: the file's bytes.

    Raises:
        RefusedFileError: it is no such file, or holds more than plain weights.
        Exception: it is damaged; errors of many kinds, all of which mean this.
    """
    if data[:4] == b"PK\x03\x04":
        _check_zip(data)
    else:
        _check_old_file(data)


def _check_zip(data: bytes) -> None:
    """Check a file of torch 1.6 or later: a zip with a pickle, and one entry for each storage.

    Raises:
        RefusedFileError: it holds more than plain weights.
        Exception: it is damaged.
    """
    if data[-22:-18] != b"PK\x05\x06" or data[-2:] != b"\0\0":
        raise RefusedFileError(
            "it is damaged: the zip's directory is not at its end"
        )  # where two readers could find two of them
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        packed = [entry for entry in entries if entry.compress_type or entry.compress_size != entry.file_size]
        if packed or len(sizes) != len(entries) or sum(sizes.values()) > len(data):
            raise RefusedFileError("it is damaged: entries are compressed, there twice, or longer than the file")
        pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        folder = pickles[0].removesuffix("data.pkl")
        if len(pickles) != 1 or f"{folder}constants.pkl" in sizes:
            raise RefusedFileError("it is a TorchScript program: save only its state_dict")
        storages = _Pickle(io.BytesIO(archive.read(pickles[0])), in_zip=True).storages
    for storage in storages:
        if sizes[f"{folder}data/{storage.key}"] != storage.numel * storage.itemsize:
            raise RefusedFileError("it is damaged: an entry has another size than its storage")


def _check_old_file(data: bytes) -> None:
    """Check a file of torch before 1.6: five pickles, then each storage as its number of elements and its bytes.

    Raises:
        RefusedFileError: it holds more than plain weights.
        Exception: it is damaged.
    """
    stream, values, storages = io.BytesIO(data), list[Any](), set[_Storage]()
    if _MAGIC not in data[:20]:
        raise RefusedFileError("it is neither a file of safetensors nor one of torch.save")
    for _ in range(5):  # magic number, version, system, the saved value, keys of the storages
        pickled = _Pickle(stream, in_zip=False)
        values.append(pickled.value)
        storages |= pickled.storages
    start = stream.tell()
    by_key = {storage.key: storage for storage in storages}
    keys = values[4]
    if len(by_key) != len(storages) or not isinstance(keys, list) or sorted(keys) != sorted(by_key):
        raise RefusedFileError("it is damaged: the storages are not those that the tensors use")
    for key in keys:
        storage = by_key[key]
        if int.from_bytes(data[start : start + 8], "little") != storage.numel:
            raise RefusedFileError("it is damaged: a storage has another size than its tensors say")
        start += 8 + storage.numel * storage.itemsize
    if start > len(data):
        raise RefusedFileError("it is damaged: the file is shorter than its storages")


class _Pickle:
    """One pickle, followed opcode by opcode without executing what it asks for.

    Args:
        stream: begins with the pickle, and stands behind it afterwards.
        in_zip: whether storages are named as in a zip, or as in an old file.

    Raises:
        RefusedFileError: it refers to something that no plain state dict has.
        Exception: it is damaged.
    """

    def __init__(self, stream: IO[bytes], in_zip: bool) -> None:
        self.storages: set[_Storage] = set()
        self.value: Any = None
        self._in_zip = in_zip
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name != "STOP":
                self._follow(opcode.name, argument)
        (self.value,) = self._stack

    def _follow(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        stack = self._stack
        if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"):
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "TUPLE":
            whole = tuple(self._items())
            self._stack.append(whole)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError("stack")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = self._items() if name == "APPENDS" else [stack.pop()]
            _of_type(self._stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._items() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _of_type(self._stack[-1], dict).update(_pairs(items))
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._call(stack.pop().name, _of_type(arguments, tuple)))
        elif name == "NEWOBJ":
            arguments = stack.pop()
            if (stack.pop(), arguments) != (_Global("argparse.Namespace"), ()):
                raise RefusedFileError("it holds an object: save only its state_dict")
            stack.append(_Opaque())
        elif name == "BUILD":
            dict(_of_type(stack.pop(), dict))
            _of_type(stack[-1], (dict, _Opaque))
        elif name != "PROTO":
            raise RefusedFileError(f"it has the opcode {name}: save only its state_dict, with torch.save")

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _storage(self, identity: Any) -> _Storage:
        """The storage of a persistent id: (`storage`, type, key, device, elements), in old files with a view behind."""
        word, kind, key, _, numel, *view = _of_type(identity, tuple)
        size = _STORAGES.get(_of_type(kind, _Global).name.rpartition(".")[2].removesuffix("Storage"))
        if word not in ("storage", b"storage") or size is None or type(numel) is not int or not 0 <= numel < 2**48:
            raise RefusedFileError("it holds a storage of another kind than real numbers: save dense tensors")
        if view not in ([],) and (self._in_zip or view != [None]):
            raise RefusedFileError("its tensors share storages: save it with a newer torch")
        storage = _Storage(_of_type(key, str), size, numel)
        self.storages.add(storage)
        return storage

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The result of a call that a pickle asks for, as far as it matters here."""
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            _check_tensor(*arguments[:4])
            return _Opaque()
        if name == "collections.OrderedDict":
            return dict(_pairs([part for pair in (arguments[0] if arguments else ()) for part in pair]))
        if name == "torch.Size":
            return tuple(arguments[0])
        if name in ("collections.Counter", "builtins.set"):
            if not all(isinstance(item, _SCALARS) for item in (arguments[0] if arguments else ())):
                raise TypeError("key")
            return _Opaque()
        if name == "_codecs.encode" and arguments[1:] in (("latin1",), ("latin-1",)):
            return _of_type(arguments[0], str).encode("latin1")
        if name in ("torch._utils._rebuild_parameter", "torch.device"):
            return _Opaque()
        raise RefusedFileError(f"it calls {shortened(name)}: save only its state_dict")


def _dict() -> dict[Any, Any]:
    return {}


_EMPTY: dict[str, Any] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": _dict, "EMPTY_SET": set}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CALLS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
    "argparse.Namespace",
}
_DTYPES = {str(dtype) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def _of_type(value: Any, kind: Any) -> Any:
    """The value, after a check of its type."""
    if not isinstance(value, kind):
        raise TypeError(type(value).__name__)
    return value


def _pairs(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys and values that follow each other; a key must be a plain value, as the hash of a tuple can take for ever."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        yield _of_type(key, _SCALARS), value


def _global(argument: str) -> _Global:
    """The name that a pickle refers to, if a state dict or the plain values around it may have it.

    Raises:
        RefusedFileError: they have not.
    """
    module, _, attribute = argument.partition(" ")
    name = f"{module.replace('__builtin__', 'builtins')}.{attribute}"
    is_storage = module in ("torch", "torch.cuda") and attribute.removesuffix("Storage") in _STORAGES
    if name not in _CALLS and not is_storage and name not in _DTYPES:
        if module == "torch._utils" or (module == "torch" and attribute.endswith("Storage")):
            raise RefusedFileError(f"{shortened(attribute)} makes no plain tensor: save dense tensors of real numbers")
        raise RefusedFileError(f"it holds a {shortened(name)}: save only its state_dict")
    return _Global(name)


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    """Check that a tensor lies within its storage, and has no more elements than it.

    Raises:
        RefusedFileError, TypeError: it does not.
    """
    numbers = [offset, *_of_type(size, tuple), *_of_type(stride, tuple)]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(size) != len(stride):
        raise RefusedFileError("it is damaged: a tensor's sizes are no numbers")
    if math.prod(size) == 0:
        return
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if last >= _of_type(storage, _Storage).numel or math.prod(size) > storage.numel:
        raise RefusedFileError("it is damaged: a tensor is larger than its storage")
