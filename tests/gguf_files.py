"""GGUF files for tests, written by llama.cpp's own package."""

import gguf


def write_gguf(path, tensors, architecture="llama", **metadata):
    """A GGUF file with `tensors` (name: array, or bytes and their type) and metadata by their types."""
    # Names with a dot go through a dictionary: write_gguf(path, {}, **{"llama.block_count": 2}).
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
