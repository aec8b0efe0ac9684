import importlib.util
import json
import os
import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from radit_jax.runtime.pretrained.tensor_files import Tensor, largest_error, open_tensors, write_tensors

torch = pytest.importorskip("torch")


def tensor(array):
    return Tensor(array.shape, array.__getitem__)


A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.float32([0.5, -1.5])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_written_the_packages_own_reader_reads(tmp_path, dtype):
    write_tensors(tmp_path, {"a": tensor(A.T), "b": tensor(B)}, dtype=dtype)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    read = load_file(tmp_path / "model.safetensors")
    assert read["a"].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(read["a"].astype(np.float32), A.T)
    np.testing.assert_array_equal(read["b"].astype(np.float32), B)
    assert (tmp_path / "model.safetensors").read_bytes()[8:9] == b"{"


def test_a_large_checkpoint_lies_in_several_files_with_an_index(tmp_path):
    tensors = {"a": tensor(A), "b": tensor(B), "c": tensor(B), "d": tensor(A)}
    write_tensors(tmp_path, tensors, shard_bytes=16)  # a and d take 48 bytes, b and c 8 each
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 112},
        "weight_map": {
            "a": "model-00001-of-00003.safetensors",
            "b": "model-00002-of-00003.safetensors",
            "c": "model-00002-of-00003.safetensors",
            "d": "model-00003-of-00003.safetensors",
        },
    }
    read = open_tensors(tmp_path)
    assert {name: read[name].whole().tolist() for name in read} == {
        "a": A.tolist(),
        "b": B.tolist(),
        "c": B.tolist(),
        "d": A.tolist(),
    }


def test_a_part_of_a_tensor_is_read_alone(tmp_path):
    write_tensors(tmp_path, {"a": tensor(A)}, dtype="bfloat16")
    part = open_tensors(tmp_path)["a"].read((slice(1, 3), slice(0, 2)))
    assert part.tolist() == [[4, 5], [8, 9]] and part.dtype == jnp.bfloat16


def test_the_largest_error_is_that_of_the_rounding(tmp_path):
    write_tensors(tmp_path, {"a": tensor(A + 0.001)}, dtype="bfloat16")
    # Whole numbers to 11 are bfloat16's own, and all that was added is rounded off but at 0.
    assert largest_error(tmp_path, {"a": tensor(A + 0.001)}) == pytest.approx(0.001, rel=1e-3)
    write_tensors(tmp_path, {"a": tensor(A)}, dtype="bfloat16")
    assert largest_error(tmp_path, {"a": tensor(A)}) == 0


def test_a_truncated_file_is_named(tmp_path):
    save_file({"a": A}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in (len(whole) - 1, 20, 0):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"expected a whole safetensors file, got {size} bytes"):
            open_tensors(tmp_path)


def test_a_file_that_the_index_names_and_that_is_not_there_is_named(tmp_path):
    write_tensors(tmp_path, {"a": tensor(A), "b": tensor(B)}, shard_bytes=16)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors: expected the file that model\."):
        open_tensors(tmp_path)


def test_a_tensor_in_two_files_is_named(tmp_path):
    for number in (1, 2):
        save_file({"a": A}, tmp_path / f"part{number}.safetensors")
    with pytest.raises(ValueError, match=r"part2\.safetensors: expected each tensor once, got 'a' again"):
        open_tensors(tmp_path)


# ---- torch's own form ----


def test_a_pickle_is_read_where_there_are_no_safetensors(tmp_path):
    torch.save({"a": torch.tensor(A), "b": torch.tensor(B).bfloat16()}, tmp_path / "pytorch_model.bin")
    read = open_tensors(tmp_path)
    np.testing.assert_array_equal(read["a"].read((slice(1, 2), slice(None))), A[1:2])
    assert read["b"].whole().tolist() == B.tolist() and read["b"].whole().dtype == jnp.bfloat16
    save_file({"c": A}, tmp_path / "model.safetensors")
    assert list(open_tensors(tmp_path)) == ["c"]


def test_pickles_may_be_several_with_an_index(tmp_path):
    for number, name in enumerate("ab", 1):
        torch.save({name: torch.tensor(A)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    assert sorted(open_tensors(tmp_path)) == ["a", "b"]
    weight_map = {"a": "pytorch_model-00001-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sorted(open_tensors(tmp_path)) == ["a"]


def test_a_pickle_of_before_2020_is_read(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.tensor(A)}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(open_tensors(tmp_path)["a"].whole(), A)


@pytest.mark.parametrize("value", [torch.tensor(A), [torch.tensor(A)], 3, {1: torch.tensor(A)}])
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: expected a model's state_dict, got .* Save that"
    ):
        open_tensors(tmp_path)


def test_a_pickle_without_torch_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"torch to read its .* got neither. pip install 'radit_jax\[torch\]'"
    ):
        open_tensors(tmp_path)


# ---- files of any content ----


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"-1",
        b"[]",
        b"null",
        b"[" * 5000,
        b'{"weight_map": null}',
        b'{"weight_map": []}',
    ]
    + [
        json.dumps({"weight_map": {"a": name}}).encode()
        for name in ("", "../a", "/etc/x", "a/b", ".", 3, None, [])
    ],
)
def test_an_index_of_any_content_is_refused_by_its_name(tmp_path, content):
    save_file({"a": A}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"index\.json.*: expected .*, got .*\. Fetch the checkpoint again\."
    ):
        open_tensors(tmp_path)


@pytest.mark.parametrize("dtype", ["F4", "F8_E4M3", "I8", "U8", "BOOL", "no such"])
def test_numbers_that_are_no_floats_are_refused_by_the_tensors_name(tmp_path, dtype):
    head = json.dumps(
        {"a": {"dtype": dtype, "shape": [4, 4], "data_offsets": [0, 16 if dtype != "F4" else 8]}}
    )
    data = len(head).to_bytes(8, "little") + head.encode() + bytes(16 if dtype != "F4" else 8)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: expected "):
        open_tensors(tmp_path)["a"].whole()


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a whole safetensors file"):
        open_tensors(tmp_path)


# ---- pickles that are traps ----


class Trap:
    """Unpickled without care, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path):
    torch.save({"a": torch.tensor(A), "b": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected a file that torch\.load\(weights_"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match="refuses"):
        open_tensors(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_of_something_else_than_tensors_is_refused(tmp_path):
    torch.save({"a": torch.tensor(A), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected a model's state_dict, got int for .epoch"):
        open_tensors(tmp_path)


# ---- memory ----

MEASURE = """
import gc, re, sys, threading, time
import jax, jax.numpy as jnp
from radit_jax.config import DecoderConfig
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.pretrained import hf_weights, tensor_files

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

class Peak(threading.Thread):
    def __enter__(self):
        gc.collect()
        self.daemon, self.done, self.start_at, self.peak = True, False, anonymous(), 0
        self.start()
        return self
    def run(self):
        while not self.done:
            self.peak = max(self.peak, anonymous() - self.start_at - self.live())
            time.sleep(0.001)
    def live(self):
        return 0
    def __exit__(self, *_):
        self.done = True
        self.join()

class PeakBesideArrays(Peak):
    def live(self):
        return sum(array.nbytes for array in jax.live_arrays()) - self.before
    def __enter__(self):
        self.before = 0
        self.before = self.live()
        return super().__enter__()

folder, copy = sys.argv[1:]
jnp.zeros(3).block_until_ready()
# Warm: what loading a small model of the same form imports and compiles is no part of it.
hf_weights.parameter_shapes(DecoderLm(DecoderConfig(8, 8, 1, 1, 1, 8, 8)))
with PeakBesideArrays() as reading:
    config, params = hf_weights.load_decoder(folder)
with Peak() as writing:
    tensor_files.write_tensors(copy, hf_weights.to_hf(params), shard_bytes=120_000_000)
assert tensor_files.largest_error(copy, hf_weights.to_hf(params)) == 0
largest = max(leaf.nbytes for leaf in jax.tree.leaves(params["model"]["layers"]))
total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(reading.peak, writing.peak, largest, total)
"""


@pytest.mark.slow
def test_a_checkpoint_is_imported_and_exported_in_the_memory_of_one_stack(tmp_path):
    """Of four files and 1 GB: the bound must be well below the model, or it would say nothing."""
    layers, size, ffn = 16, 1024, 4096
    random = np.random.default_rng(0)

    def weight(*shape):
        return random.standard_normal(shape, np.float32)

    tensors = {
        "model.embed_tokens.weight": weight(64, size),
        "model.norm.weight": weight(size),
        "lm_head.weight": weight(64, size),
    }
    for layer in range(layers):
        name = f"model.layers.{layer}."
        tensors |= {f"{name}self_attn.{x}_proj.weight": weight(size, size) for x in "qkvo"}
        tensors |= {f"{name}mlp.{x}_proj.weight": weight(ffn, size) for x in ("gate", "up")}
        tensors |= {f"{name}mlp.down_proj.weight": weight(size, ffn)}
        tensors |= {f"{name}{x}_layernorm.weight": weight(size) for x in ("input", "post_attention")}
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "in", {n: tensor(t) for n, t in tensors.items()}, shard_bytes=280_000_000)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) == 4
    config = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "intermediate_size": ffn,
    }
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "in"), str(tmp_path / "out")]
    environment = os.environ | {"XLA_FLAGS": ""}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    reading, writing, largest, total = map(int, printed.split())
    bound = 1.3 * largest + 256 * 2**20
    assert bound < 0.6 * total
    assert reading < bound
    assert writing < bound
    print(f"import {reading / 2**20:.0f} MiB, export {writing / 2**20:.0f}, bound {bound / 2**20:.0f}")
