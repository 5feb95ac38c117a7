"""Our safetensors reader and writer against the public library, and bfloat16 rounding against a definition."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mindglm.checkpoint import tensors
from mindglm.errors import UserError


def test_bfloat16_rounds_to_nearest_even_on_every_edge():
    """Neighbours of a float, halves between them to the even one, infinities and NaN."""
    raw = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808000, 0x7F7FFFFF, 0x7F800000,
                    0xFF800000, 0x00000000, 0x80000000], np.uint32)
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF80, 0x7F80, 0x7F80, 0xFF80, 0x0000, 0x8000]
    assert tensors.to_bfloat16(raw.view(np.float32)).tolist() == expected
    nan = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(tensors.to_float32(tensors.to_bfloat16(nan))).all()


def test_every_bfloat16_survives_float32_and_back():
    every = np.arange(2**16, dtype=np.uint16)
    floats = tensors.to_float32(every)
    finite = ~np.isnan(floats)
    assert (tensors.to_bfloat16(floats)[finite] == every[finite]).all()
    assert tensors.to_bfloat16(np.float32(1.5)).shape == ()


def test_file_equals_that_of_the_public_library(tmp_path):
    """Same bytes as safetensors writes, for several dtypes, an empty tensor, a scalar and a non-ASCII name."""
    rng = np.random.default_rng(0)
    arrays = {"b.weight": rng.standard_normal((3, 5)).astype(np.float32), "a": np.arange(7, dtype=np.int64),
              "c": rng.standard_normal(3), "z": np.array([True, False, True]), "é": np.arange(3, dtype=np.uint8),
              "scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32),
              "half": np.ones((2, 2), np.float16), "i": np.arange(3, dtype=np.int32)}
    tensors.write_tensors(tmp_path / "ours", arrays, {"format": "pt"})
    safetensors.numpy.save_file(arrays, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    file = tensors.TensorFile(tmp_path / "theirs")
    assert file.metadata == {"format": "pt"} and set(file.names) == set(arrays)
    for name, array in arrays.items():
        assert file.raw(name).dtype == array.dtype and np.array_equal(file.raw(name), array)
        assert name in file and file.shape(name) == array.shape and file.nbytes(name) == array.nbytes


def test_unpadded_header_is_read(tmp_path):
    """Old writers left data at odd offsets."""
    array = np.arange(4, dtype=np.float32)
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + array.tobytes())
    assert np.array_equal(tensors.TensorFile(tmp_path / "f").raw("x"), array)


@pytest.mark.parametrize("damage", ["cut data", "cut header", "no json", "wrong range", "unknown dtype", "empty"])
def test_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    tensors.write_tensors(path, {"x": np.arange(100, dtype=np.float32)})
    data = path.read_bytes()
    broken = {"cut data": data[:-1], "cut header": data[:20], "no json": data[:8] + b"?" + data[9:], "empty": b"",
              "wrong range": data.replace(b'"shape":[100]', b'"shape":[101]'),
              "unknown dtype": data.replace(b'"F32"', b'"Q32"')}[damage]
    path.write_bytes(broken)
    with pytest.raises(UserError, match="model.safetensors"):
        tensors.TensorFile(path)


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        tensors.TensorFile(tmp_path / "nowhere.safetensors")


def test_bytes_that_belong_to_no_tensor_or_to_two_are_damage(tmp_path):
    path = tmp_path / "f.safetensors"
    for offsets, rest, message in (([8, 24], 24, "begins at byte 8"), ([0, 16], 20, "4 bytes behind the last tensor")):
        header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(rest))
        with pytest.raises(UserError, match=message):
            tensors.TensorFile(path)
    two = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "xy"}
    header = json.dumps(two).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(UserError, match="tensor 'y' begins at byte 0"):
        tensors.TensorFile(path)


def test_streams_give_the_file_that_arrays_give(tmp_path, monkeypatch):
    """In pieces of a few bytes: same file, same checksums, every byte counted once; and cast on the way."""
    monkeypatch.setattr(tensors, "_CHUNK", 24)
    rng = np.random.default_rng(1)
    arrays = {"w": rng.standard_normal((7, 5)).astype(np.float32), "ids": np.arange(11), "none": np.zeros((0, 2)),
              "half": tensors.to_bfloat16(rng.standard_normal(13).astype(np.float32))}
    tensors.write_tensors(tmp_path / "a", arrays, {"format": "pt"})
    file, heard = tensors.TensorFile(tmp_path / "a"), []
    sums = tensors.write_tensors(tmp_path / "b", {name: file.stream(name) for name in arrays}, {"format": "pt"},
                                 heard.append)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sums == {name: tensors.checksum(array) for name, array in arrays.items()}
    assert sum(heard) == sum(array.nbytes for array in arrays.values()) and max(heard) <= 24
    assert np.array_equal(np.concatenate(list(file.pieces("w", 3, 20))), arrays["w"].reshape(-1)[3:20])
    tensors.write_tensors(tmp_path / "c", {"w": file.stream("w", "BF16"), "half": file.stream("half", "F32")})
    other = tensors.TensorFile(tmp_path / "c")
    assert np.array_equal(other.raw("w"), tensors.to_bfloat16(arrays["w"])) and other.dtype("half") == "F32"
    assert np.array_equal(other.raw("half"), tensors.to_float32(arrays["half"]))


def test_casts_are_those_of_numpy_and_float16_never_becomes_infinite():
    values = np.array([1.0, -3.5, 1e-8, 65504.0], np.float32)
    assert tensors.cast(values, "F16").tolist() == values.astype(np.float16).tolist()
    assert tensors.cast(tensors.to_bfloat16(values[:2]), "F32").tolist() == [1.0, -3.5]
    assert tensors.cast(np.array([np.inf], np.float32), "F16")[0] == np.inf
    with pytest.raises(OverflowError, match="70000"):
        tensors.cast(np.array([7e4], np.float32), "F16")
