"""Arrays in an .npz archive that stores them, one after the other: written and read in parts.

Guarantees: neither direction holds more than a megabyte beside the arrays, and a kilobyte for each.
Reading trusts nothing: every byte of the archive belongs to a member, its headers or the directory;
two places that say the same thing must agree; and what the archive asks for is bounded by its own
size.
"""

import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

PART = 2**17
"""The number of bytes that are held at a time."""

# Of the file format "zip": the end of the directory, its two 64-bit parts, an entry of the
# directory, and the header before a member. The names of the fields are in `_directory`.
_END, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_WIDE = 0xFFFFFFFF  # the number is in a 64-bit field
_MOST = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _WIDE, _WIDE)  # of the fields of _END
_UTF8 = 0x800  # a flag without meaning for names in ASCII

_NUMBER = rb"(?:0|[1-9]\d{0,17})"  # below 2**63
_NPY = re.compile(
    rb"\{ ?'descr': ?'([<>|])([A-Za-z])(\d{1,9})', ?'fortran_order': ?(False|True), ?"
    rb"'shape': ?\((|N,|N(?:, ?N)+,?) ?\),? ?\} *\n".replace(b"N", _NUMBER)
)
_LONGEST_NPY = 10_000  # NumPy's own limit
_LONGEST_NAME, _LONGEST_EXTRA = 100, 1000
_MOST_DIMENSIONS = 64


class Stored(NamedTuple):
    """An array in an archive.

    Attributes:
        name: its name, without the suffix.
        kind: letter and number of its dtype, such as "f4".
        order: "<" or ">", the byte order.
        fortran: whether the first index varies fastest.
        shape: its dimensions.
        start: where its numbers begin in the file.
        length: the number of bytes of its numbers.
        checksum: the CRC-32 of the member's bytes before `start`.
        wanted: the CRC-32 that the whole member must have.
    """

    name: str
    kind: str
    order: str
    fortran: bool
    shape: tuple[int, ...]
    start: int
    length: int
    checksum: int
    wanted: int


class _Member(NamedTuple):
    name: str
    start: int
    length: int
    checksum: int


class _Archive(zipfile.ZipFile):
    """An archive that writes nothing where it is given up.

    Python's own closes itself then. If Ctrl-C came while it opened a member, that is an error,
    which would hide the interrupt.
    """

    def __del__(self) -> None:
        """Do not close it."""


def write(
    file: BinaryIO, arrays: Mapping[str, tuple[np.dtype, tuple[int, ...], Iterator[np.ndarray]]]
) -> None:
    """Write an archive, with the bytes that `numpy.savez` would write.

    Args:
        file: an empty binary file.
        arrays: for each name the dtype, the shape, and the numbers in parts, in C order.
    """
    archive = _Archive(file, "w", zipfile.ZIP_STORED)
    for name, (dtype, shape, numbers) in arrays.items():
        # As NumPy does: the length of a member need not be known before it is written.
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(member, header)
            for part in numbers:
                member.write(part.view(np.uint8).data)
    archive.close()


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Return the numbers of a contiguous array in flat parts of at most `PART` bytes.

    Example:
        >>> [part.shape for part in parts(np.zeros((2, 3)))]
        [(6,)]
    """
    flat = array.reshape(-1)
    step = max(PART // array.itemsize, 1)  # a long header is one item
    return (flat[k : k + step] for k in range(0, flat.size, step))


def read(file: BinaryIO) -> dict[str, "Stored"]:
    """Return the arrays of an archive by name, without their numbers.

    Raises:
        ValueError: saying what is wrong with the archive.
    """
    found: dict[str, Stored] = {}
    for member in _directory(file):
        stored = _stored(file, member)
        if stored.name in found:
            raise ValueError(f"must be an .npz file, but an array appears twice: {stored.name!r}")
        found[stored.name] = stored
    return found


def fill(
    file: BinaryIO,
    stored: Stored,
    array: np.ndarray,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Read the numbers of a stored array into an array of its shape.

    Args:
        file: the archive.
        stored: what `read` returned.
        array: where the numbers go, C-contiguous.
        convert: is called with each part of the numbers, and returns what is put in place.

    Raises:
        ValueError: if the archive is damaged.
    """
    dtype = np.dtype(stored.order + stored.kind)
    flat = array.T.flat if stored.fortran else array.reshape(-1)
    checksum, done, step = stored.checksum, 0, PART // dtype.itemsize * dtype.itemsize
    file.seek(stored.start)
    for k in range(0, stored.length, step):
        raw = _exactly(file, min(step, stored.length - k))
        checksum = zlib.crc32(raw, checksum)
        numbers = np.frombuffer(raw, dtype)
        flat[done : done + numbers.size] = numbers if convert is None else convert(numbers)
        done += numbers.size
    _check_sum(stored, checksum)


def text(file: BinaryIO, stored: Stored, longest: int) -> str:
    """Read a stored array that is one string.

    Raises:
        ValueError: if it is something else, longer than `longest`, or damaged.
    """
    if stored.kind[0] != "U" or stored.shape != ():
        raise ValueError(
            f"{stored.name} must be a string of JSON, got array of {stored.kind}, shape "
            f"{stored.shape}"
        )
    if stored.length > 4 * longest:
        raise ValueError(
            f"{stored.name} must have at most {longest} characters, got {stored.length // 4}"
        )
    file.seek(stored.start)
    raw = _exactly(file, stored.length)
    _check_sum(stored, zlib.crc32(raw, stored.checksum))
    codec = "utf-32-le" if stored.order == "<" else "utf-32-be"
    return raw.decode(codec, "surrogatepass").rstrip("\0")


def _check_sum(stored: Stored, checksum: int) -> None:
    if checksum != stored.wanted:
        raise ValueError(f"must be an .npz file, but {stored.name} is damaged: its CRC is wrong")


def _wrong(what: str) -> ValueError:
    return ValueError(
        f"must be an .npz file that stores its arrays one after the other, but {what}"
    )


def _exactly(file: BinaryIO, length: int) -> bytes:
    raw = file.read(length)
    if len(raw) != length:
        raise _wrong("it ends early")
    return raw


def _unpacked(file: BinaryIO, form: struct.Struct, signature: bytes, where: str) -> list[int]:
    """Return the fields of a record after its signature."""
    found, *fields = form.unpack(_exactly(file, form.size))
    if found != signature:
        raise _wrong(f"there is no {where} where it should be")
    return fields


def _ends(file: BinaryIO) -> tuple[int, int, int]:
    """Return the number of members, and where the directory begins and ends."""
    size = file.seek(0, os.SEEK_END)
    if size < _END.size:
        raise _wrong("it is too short")
    end = file.seek(size - _END.size)
    *narrow, comment = _unpacked(
        file, _END, b"PK\5\6", "end of the directory (a comment there is refused)"
    )
    wide = narrow
    file.seek(max(end - _LOCATOR.size, 0))
    if file.read(4) == b"PK\6\7":
        file.seek(end - _LOCATOR.size)
        end64 = _unpacked(file, _LOCATOR, b"PK\6\7", "locator")[1]
        end -= _LOCATOR.size + _END64.size
        if end64 != end:
            raise _wrong("its 64-bit directory is elsewhere")
        file.seek(end)
        wide = _unpacked(file, _END64, b"PK\6\6", "64-bit directory")[3:]
    disk, first, here, count, length, start = wide
    same = all(b in (a, most) for a, b, most in zip(wide, narrow, _MOST, strict=True))
    if not same or comment or disk or first or here != count or start + length != end:
        raise _wrong("its directory contradicts itself")
    return count, start, end


def _directory(file: BinaryIO) -> Iterator[_Member]:
    """Return the members, each compared with the header before it."""
    count, directory, end = _ends(file)
    entry, member = directory, 0  # where the next ones begin
    for _ in range(count):
        file.seek(entry)
        fields = _unpacked(file, _ENTRY, b"PK\1\2", "entry of the directory")
        _, _, flags, method, _, _, crc, packed, length, n_name, n_extra, n_comment = fields[:12]
        offset = fields[-1]
        if n_name > _LONGEST_NAME or n_extra > _LONGEST_EXTRA:
            raise _wrong(f"the name of an array has {n_name} bytes, and {n_extra} more")
        raw_name = _exactly(file, n_name)
        length, packed, offset = _widened(_exactly(file, n_extra), length, packed, offset)
        entry += _ENTRY.size + n_name + n_extra + n_comment
        name = raw_name.decode("ascii", "backslashreplace")
        if method != 0:
            raise ValueError(
                f"must be an .npz file that stores its arrays, as numpy.savez writes it, but "
                f"{name!r} is compressed"
            )
        if flags & ~_UTF8 or packed != length or fields[12]:
            raise _wrong(f"{name!r} is encrypted, streamed or split")
        if offset != member:
            raise _wrong(f"{name!r} does not begin where the one before ends")
        file.seek(member)
        fields = _unpacked(file, _LOCAL, b"PK\3\4", "header of a member")
        _, flags2, method2, _, _, crc2, packed2, length2, n_name2, n_extra2 = fields
        same_name = _exactly(file, n_name2) == raw_name and n_extra2 <= _LONGEST_EXTRA
        length2, packed2 = _widened(_exactly(file, n_extra2), length2, packed2)
        start = member + _LOCAL.size + n_name2 + n_extra2
        said, says = (flags, method, crc, packed, length), (flags2, method2, crc2, packed2, length2)
        if not same_name or said != says:
            raise _wrong(f"{name!r} differs from the directory")
        member = start + length
        yield _Member(name, start, length, crc)
    if entry != end or member != directory:
        raise _wrong("its arrays and its directory do not fill it")


def _widened(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers of a record, with those that are in its 64-bit field."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
            break
        extra = extra[4 + length :]
    result = []
    for number in numbers:
        if number == _WIDE:
            if len(wide) < 8:
                raise _wrong("a 64-bit number is missing")
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(number)
    return result


def _stored(file: BinaryIO, member: _Member) -> Stored:
    """Read the header of an array; its size must be that of the member."""
    name = member.name.removesuffix(".npy")
    file.seek(member.start)
    head = _exactly(file, min(member.length, 12 + _LONGEST_NPY))
    # Version 1.0 has two bytes for the length of the header, 2.0 has four.
    begin = {b"\x93NUMPY\1\0": 10, b"\x93NUMPY\2\0": 12}.get(head[:8], 0)
    start = begin + int.from_bytes(head[8:begin], "little")
    found = _NPY.fullmatch(head[begin:start]) if 0 < begin < start <= len(head) else None
    if found is None:
        raise ValueError(
            f"must be an .npz file without pickled objects, but {name!r} is no array of numbers "
            f"or text: {head[:80]!r}"
        )
    order, letter, digits, fortran, dimensions = (x.decode("ascii") for x in found.groups())
    shape = tuple(int(n) for n in dimensions.split(",") if n)
    itemsize = int(digits) * (4 if letter == "U" else 1)
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"must be an .npz file, but {name!r} has {len(shape)} dimensions")
    if itemsize * math.prod(shape) != member.length - start:
        raise ValueError(
            f"must be an .npz file, but {name!r} has {member.length - start} bytes for "
            f"{letter}{digits} of shape {shape}"
        )
    checksum = zlib.crc32(head[:start])
    order = ">" if order == ">" else "<"
    return Stored(
        name, letter + digits, order, fortran == "True", shape,
        member.start + start, member.length - start, checksum, member.checksum,
    )  # fmt: skip
