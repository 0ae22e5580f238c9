"""gravity_core._npz: texts, headers and bounds of an archive, beside what NumPy reads."""

import io
import struct
import zipfile

import numpy as np
import pytest

from gravity_core import _npz


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file


def members(**contents):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"{name}.npy", content)
    return file


def npy(header, numbers=b"", version=1):
    length = len(header).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + numbers


def text(file, longest=100):
    return _npz.text(file, _npz.read(file)["a"], longest)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", ["", "plain", "\0 kept \n", "ends in X", "\ud800", "\U0001f600é"])
def test_a_text_is_read_as_it_was_written(value, order):
    file = saved(a=np.array(value, f"{order}U12"))
    assert text(file) == str(np.load(io.BytesIO(file.getvalue()))["a"]) == value


def test_the_longest_text():
    assert text(saved(a=np.array("12345")), 5) == "12345"
    with pytest.raises(ValueError, match=r"^a must have at most 5 characters, got 6$"):
        text(saved(a=np.array("123456")), 5)


def test_a_text_that_is_damaged():
    file = saved(a=np.array("text"))
    data = file.getvalue().replace("x".encode("utf-32-le"), "s".encode("utf-32-le"))
    with pytest.raises(ValueError, match=r"but a is damaged: its CRC is wrong$"):
        text(io.BytesIO(data))


@pytest.mark.parametrize("content", [b"", b"no array" * 20, npy(b"")[:-1], npy(b"{}\n"), npy(b"")])
def test_a_member_that_is_no_array(content):
    with pytest.raises(ValueError, match="without pickled objects") as caught:
        _npz.read(members(a=content))
    assert str(caught.value).endswith(f"'a' is no array of numbers or text: {content[:80]!r}")


HEADER = b"{'descr': '<f8', 'fortran_order': False, 'shape': (), }"


def test_the_longest_header_is_that_of_numpy():
    for length in (10_000, 10_001):
        data = members(a=npy(HEADER.ljust(length - 1) + b"\n", bytes(8), version=2)).getvalue()
        for read in (_npz.read, lambda file: np.load(file)["a"]):
            if length == 10_000:
                read(io.BytesIO(data))
                continue
            with pytest.raises(ValueError, match=r"is no array|max_header_size"):
                read(io.BytesIO(data))


def test_a_header_that_ends_after_its_member():
    content = npy(HEADER + b"\n")
    with pytest.raises(ValueError, match="'a' is no array of numbers or text"):
        _npz.read(members(a=content[:8] + struct.pack("<H", len(HEADER) + 3) + content[10:]))


def test_as_many_dimensions_as_numpy_has():
    (found,) = _npz.read(saved(a=np.ones((1,) * 64))).values()
    assert found.shape == (1,) * 64


def test_an_item_longer_than_a_part_is_a_part():
    array = np.zeros(3, f"S{_npz.PART + 1}")
    assert [part.size for part in _npz.parts(array)] == [1, 1, 1]


def test_an_archive_without_arrays():
    assert _npz.read(members()) == {}


END = "end of the directory (a comment there is refused)"
DAMAGE = [
    (lambda data: data[:21], "it is too short"),
    (lambda data: data + b"comment", f"there is no {END} where it should be"),
    (
        lambda data: data.replace(b"PK\1\2", b"PK\1\1"),
        "there is no entry of the directory where it should be",
    ),
    (
        lambda data: data.replace(b"PK\3\4", b"PK\3\3"),
        "there is no header of a member where it should be",
    ),
    # The name, of 90 bytes, would end after the file.
    (lambda data: data[:-45] + b"\x5a" + data[-44:], "it ends early"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_what_is_missing_is_named(damage, message):
    data = saved(a=np.zeros(2)).getvalue()
    assert data[-45:-43] == b"\5\0"  # the length of "a.npy" in the directory
    with pytest.raises(ValueError, match=r"^must be an \.npz file that") as caught:
        _npz.read(io.BytesIO(damage(data)))
    assert str(caught.value).endswith(f"stores its arrays one after the other, but {message}")


def test_a_64_bit_directory_that_is_missing(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    data = saved(a=np.zeros(2)).getvalue().replace(b"PK\6\6", b"PK\6\5")
    with pytest.raises(ValueError, match=r"but there is no 64-bit directory where it should be$"):
        _npz.read(io.BytesIO(data))


def test_a_64_bit_field_that_is_missing():
    file = saved(a=np.zeros(2))
    data = bytearray(file.getvalue())
    struct.pack_into("<L", data, data.index(b"PK\1\2") + 20, 2**32 - 1)
    with pytest.raises(ValueError, match=r"a 64-bit number is missing$"):
        _npz.read(io.BytesIO(data))


def test_a_field_that_claims_more_bytes_than_there_are():
    """It is the last one: the field with the sizes that follows is not read."""
    file = saved(a=np.zeros(2))
    data = file.getvalue()
    entry, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    # As a signed number, this length would lead back to the field with the sizes.
    extra = struct.pack("<2H", 7, 2**16 - 24) + struct.pack("<2H2Q", 1, 16, 144, 144)
    directory = bytearray(data[entry:end])
    struct.pack_into("<2L", directory, 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<H", directory, 30, len(extra))
    last = bytearray(data[end:])
    struct.pack_into("<L", last, 12, len(directory) + len(extra))
    with pytest.raises(ValueError, match=r"a 64-bit number is missing$"):
        _npz.read(io.BytesIO(data[:entry] + directory + extra + last))


@pytest.mark.parametrize(("place", "is_read"), [(34, False), (36, True)], ids=["disk", "is text"])
def test_a_member_on_another_disk(place, is_read):
    """The number after that of the disk says whether the member is text, and is ignored."""
    data = bytearray(saved(a=np.zeros(2)).getvalue())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + place, 1)
    if is_read:
        assert list(_npz.read(io.BytesIO(data))) == ["a"]
    else:
        with pytest.raises(ValueError, match=r"'a\.npy' is encrypted, streamed or split$"):
            _npz.read(io.BytesIO(data))


@pytest.mark.parametrize(
    ("signature", "field"), [(b"PK\1\2", 16), (b"PK\5\6", 12)], ids=["arrays", "directory"]
)
def test_bytes_that_belong_to_nothing(signature, field):
    """After the arrays they move the directory's start, after the directory its length."""
    data = saved(a=np.zeros(2)).getvalue()
    place, end = data.index(signature), data.index(b"PK\5\6")
    last = bytearray(data[end:])
    (number,) = struct.unpack_from("<L", last, field)
    struct.pack_into("<L", last, field, number + 4)
    with pytest.raises(ValueError, match=r"but its arrays and its directory do not fill it$"):
        _npz.read(io.BytesIO(data[:place] + b"more" + data[place:end] + last))


@pytest.mark.parametrize("wide", [False, True])
def test_fields_of_other_programs_beside_those_of_numpy(wide):
    """Such as the time of a file, and a comment."""
    file = io.BytesIO()
    info = zipfile.ZipInfo("a.npy")
    info.extra = struct.pack("<2HL2H", 0x5455, 4, 7, 0x7875, 0)
    info.comment = b"about a"
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(info, "w", force_zip64=wide) as member:
            member.write(npy(HEADER + b"\n", np.float64(0.5).tobytes()))
        archive.writestr("b.npy", npy(HEADER + b"\n", np.float64(0.25).tobytes()))
    found = _npz.read(file)
    for name, value in (("a", 0.5), ("b", 0.25)):
        _npz.fill(file, found[name], array := np.zeros(()))
        assert array == value


NUMBER = npy(HEADER + b"\n", bytes(8))


def test_a_name_outside_ascii_is_escaped():
    assert list(_npz.read(members(é=NUMBER))) == [r"\xc3\xa9"]


@pytest.mark.parametrize(("name", "extra", "is_read"), [(100, 1000, 1), (101, 0, 0), (5, 1001, 0)])
def test_the_longest_name_and_fields(name, extra, is_read):
    file = io.BytesIO()
    info = zipfile.ZipInfo("x" * (name - 4) + ".npy")
    info.extra = struct.pack("<2H", 7, extra - 4) + bytes(extra - 4) if extra else b""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, NUMBER)
    if is_read:
        assert list(_npz.read(file)) == ["x" * 96]
    else:
        with pytest.raises(ValueError, match=f"of an array has {name} bytes, and {extra} more$"):
            _npz.read(file)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_interrupts_the_opening_of_a_member_is_what_is_raised(monkeypatch, error):
    """Python's own archive would be closed with an error of its own."""
    opened, really = [], zipfile.ZipFile.open

    def interrupted(*args, **kwargs):
        opened.append(really(*args, **kwargs))
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "open", interrupted)
    with pytest.raises(error):
        _npz.write(io.BytesIO(), {"a": (np.dtype("f4"), (1,), iter([np.ones(1, "f4")]))})
