"""The header and the tensors of GGUF files, against llama.cpp's own package."""

import struct

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf

from radit_jax.runtime.pretrained import gguf_file
from radit_jax.runtime.pretrained.gguf_file import TYPES, model_parts, open_gguf

MATRIX = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
VECTOR = np.float32([0.5, -1.5, 2.0])
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # types that the package can also write


@pytest.fixture
def small(tmp_path):
    return write_gguf(tmp_path / "small.gguf", {"matrix": MATRIX, "vector": VECTOR}, a_text="é", a_number=7)


def test_metadata_are_what_was_written(tmp_path):
    values = {"size": 7, "eps": 1e-6, "flag": True, "words": ["a", "", "▁é"], "scores": [-1.0, -2.5]}
    metadata = open_gguf(write_gguf(tmp_path / "m.gguf", {}, **values)).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["scores"].tolist() == values.pop("scores")
    assert {name: metadata[name] for name in values} == values


def test_plain_tensors_are_what_was_written(tmp_path):
    half = MATRIX.astype(np.float16)
    upper = (MATRIX.view(np.uint32) >> 16).astype(np.uint16)
    bfloat = (upper.view(np.uint8), gguf.GGMLQuantizationType.BF16)
    file = open_gguf(
        write_gguf(tmp_path / "p.gguf", {"f32": MATRIX, "f16": half, "bf16": bfloat, "v": VECTOR})
    )
    np.testing.assert_array_equal(file.read("f32"), MATRIX)
    np.testing.assert_array_equal(file.read("f16"), half)
    np.testing.assert_array_equal(file.read("bf16"), (upper.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_array_equal(file.read("v"), VECTOR)
    np.testing.assert_array_equal(file.read("v", slice(1, 3)), VECTOR[1:3])
    assert file.read("f16").dtype == np.float16


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_tensors_are_near_what_was_written(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    data = gguf.quants.quantize(MATRIX, kind)
    file = open_gguf(write_gguf(tmp_path / "q.gguf", {"m": (data, kind)}))
    read = file.read("m")
    assert read.dtype == np.float32 and read.shape == MATRIX.shape
    bits = int(name[1])
    assert np.abs(read - MATRIX).max() < 8 / 2**bits  # the largest number is about 3.5
    # Rows of a slice, and rows in another order.
    np.testing.assert_array_equal(file.read("m", slice(1, 4)), read[1:4])
    np.testing.assert_array_equal(file.read("m", np.array([5, 0])), read[[5, 0]])


def test_types_have_the_sizes_of_the_package():
    for number, kind in TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (kind.name, (kind.block, kind.size)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


def test_every_quantised_type_can_be_read(tmp_path):
    for kind in TYPES.values():
        if kind.name in gguf_file.PLAIN:
            continue
        data = np.zeros((2, kind.size * 256 // kind.block), np.uint8)
        path = write_gguf(tmp_path / "z.gguf", {"z": (data, gguf.GGMLQuantizationType[kind.name])})
        assert open_gguf(path).read("z").shape == (2, 256)


def test_without_the_package_only_quantised_tensors_are_refused(tmp_path, monkeypatch):
    data = gguf.quants.quantize(MATRIX, gguf.GGMLQuantizationType.Q8_0)
    tensors = {"q": (data, gguf.GGMLQuantizationType.Q8_0), "f": MATRIX}
    file = open_gguf(write_gguf(tmp_path / "q.gguf", tensors))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    np.testing.assert_array_equal(file.read("f"), MATRIX)
    with pytest.raises(ValueError, match=r"q\.gguf: expected the package gguf.*Q8_0.*radit_jax\[gguf\]"):
        file.read("q")


# ---- files that are refused ----


def test_a_file_cut_anywhere_is_refused_by_name(small):
    whole = small.read_bytes()
    end = open_gguf(small).tensors["vector"].end  # only padding follows
    for length in range(0, end, 7):
        small.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"small\.gguf: expected .*got"):
            open_gguf(small)
    small.write_bytes(whole[: end - 1])
    with pytest.raises(ValueError, match=r'"vector".* cut short'):
        open_gguf(small)


def changed(path, offset, form, value):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0, "<4s", b"GGML", r"expected a GGUF file, got one that begins with b'GGML'"),
        (4, "<I", 1, "expected version 2 or 3 of GGUF, little endian, got 1"),
        (4, "<I", 4, "got 4"),
        (4, ">I", 3, "little endian, got 50331648"),
        (8, "<Q", 1 << 60, r"expected at most \d+ tensors"),
        (16, "<Q", 1 << 60, r"expected at most \d+ entries of metadata"),
        (24, "<Q", 1 << 40, "cut short"),  # the length of the first name
    ],
)
def test_a_wrong_beginning_is_refused_by_name(small, offset, form, value, message):
    with pytest.raises(ValueError, match=rf"small\.gguf: .*{message}"):
        open_gguf(changed(small, offset, form, value))


def after(path, name):
    """The place of what follows a name in the file."""
    return path.read_bytes().index(name.encode()) + len(name)


def test_unknown_kinds_and_types_are_refused_by_number(small):
    whole = small.read_bytes()
    with pytest.raises(ValueError, match=r"small\.gguf: .*a value of kind 77"):
        open_gguf(changed(small, after(small, "a_number"), "<I", 77))
    small.write_bytes(whole)
    type_place = after(small, "matrix") + 4 + 2 * 8
    with pytest.raises(ValueError, match=r"small\.gguf: .*Q4_K.*got type 99"):
        open_gguf(changed(small, type_place, "<I", 99))
    small.write_bytes(whole)
    with pytest.raises(ValueError, match=r"small\.gguf: .*1 to 4 axes.*got 9"):
        open_gguf(changed(small, after(small, "matrix"), "<I", 9))


def test_rows_that_blocks_do_not_fill_are_refused(small):
    type_place = after(small, "vector") + 4 + 8
    with pytest.raises(ValueError, match=r"a multiple of 32 numbers in type Q8_0, got 3"):
        open_gguf(changed(small, type_place, "<I", 8))


def test_a_name_that_stands_twice_is_refused(small):
    data = small.read_bytes().replace(b"vector", b"matrix")
    small.write_bytes(data)
    with pytest.raises(ValueError, match=r'expected "matrix" once'):
        open_gguf(small)


# ---- models in parts ----


def test_the_files_of_a_model_in_parts(tmp_path):
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    assert model_parts(paths[0]) == paths
    assert model_parts(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    with pytest.raises(ValueError, match=r"Name m-00001-of-00003\.gguf"):
        model_parts(paths[1])
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"m-00003-of-00003\.gguf: expected this part"):
        model_parts(paths[0])
