"""Every block format of GGUF tensors that is promised, number by number from its bytes.

The loops below follow the layouts of ggml's `block_*` structures; the package reads them with the
`gguf` library.
"""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.lm.gguf import GGUFFile

gguf = pytest.importorskip("gguf")


def half(raw: np.ndarray) -> float:
    return float(np.frombuffer(raw.tobytes(), np.float16)[0])


def nibbles(qs: np.ndarray) -> list[int]:
    """Low halves of all bytes, then high ones."""
    return [int(q) & 15 for q in qs] + [int(q) >> 4 for q in qs]


def fifth_bits(qh: np.ndarray) -> list[int]:
    return [(int(qh[j // 8]) >> (j % 8)) & 1 for j in range(32)]


def q4_0(b):
    return [half(b[:2]) * (q - 8) for q in nibbles(b[2:])]


def q4_1(b):
    return [half(b[:2]) * q + half(b[2:4]) for q in nibbles(b[4:])]


def q5_0(b):
    return [
        half(b[:2]) * (q + 16 * h - 16)
        for q, h in zip(nibbles(b[6:]), fifth_bits(b[2:6]), strict=True)
    ]


def q5_1(b):
    return [
        half(b[:2]) * (q + 16 * h) + half(b[2:4])
        for q, h in zip(nibbles(b[8:]), fifth_bits(b[4:8]), strict=True)
    ]


def q8_0(b):
    return [half(b[:2]) * int(q) for q in b[2:].view(np.int8)]


def q2_k(b):
    scales, qs, d, least = b[:16], b[16:80], half(b[80:82]), half(b[82:84])
    values = []
    for i in range(256):
        part, place = divmod(i, 128)
        shift, byte = divmod(place, 32)
        scale = int(scales[i // 16])
        q = (int(qs[32 * part + byte]) >> (2 * shift)) & 3
        values.append(d * (scale & 15) * q - least * (scale >> 4))
    return values


def q3_k(b):
    high, qs, packed, d = b[:32], b[32:96], b[96:108], half(b[108:110])
    values = []
    for i in range(256):
        part, place = divmod(i, 128)
        shift, byte = divmod(place, 32)
        s = i // 16
        low = int(packed[s]) & 15 if s < 8 else int(packed[s - 8]) >> 4
        scale = low | ((int(packed[8 + s % 4]) >> (2 * (s // 4))) & 3) << 4
        q = (int(qs[32 * part + byte]) >> (2 * shift)) & 3
        bit = (int(high[byte]) >> (4 * part + shift)) & 1
        values.append(d * (scale - 32) * (q - 4 * (1 - bit)))
    return values


def scale_and_least(packed: np.ndarray, s: int) -> tuple[int, int]:
    """Six bits each, of eight sub-blocks in twelve bytes."""
    p = [int(x) for x in packed]
    if s < 4:
        return p[s] & 63, p[s + 4] & 63
    return (p[s + 4] & 15) | (p[s - 4] >> 6) << 4, (p[s + 4] >> 4) | (p[s] >> 6) << 4


def q4_k(b, high=None):
    d, least, packed = half(b[:2]), half(b[2:4]), b[4:16]
    qs = b[16:] if high is None else b[48:]
    values = []
    for i in range(256):
        s, byte = divmod(i, 32)
        q = (int(qs[32 * (s // 2) + byte]) >> (4 * (s % 2))) & 15
        if high is not None:
            q += 16 * ((int(high[byte]) >> s) & 1)
        scale, offset = scale_and_least(packed, s)
        values.append(d * scale * q - least * offset)
    return values


def q5_k(b):
    return q4_k(b, high=b[16:48])


def q6_k(b):
    low, high, scales, d = b[:128], b[128:192], b[192:208].view(np.int8), half(b[208:210])
    values = []
    for i in range(256):
        part, place = divmod(i, 128)
        quarter, byte = divmod(place, 32)
        q = int(low[64 * part + 32 * (quarter % 2) + byte]) >> (4 * (quarter // 2)) & 15
        q |= ((int(high[32 * part + byte]) >> (2 * quarter)) & 3) << 4
        values.append(d * int(scales[i // 16]) * (q - 32))
    return values


# Bytes of a block and the places of its half-precision scales.
BLOCKS = {
    "Q4_0": (q4_0, 18, [0]),
    "Q4_1": (q4_1, 20, [0, 2]),
    "Q5_0": (q5_0, 22, [0]),
    "Q5_1": (q5_1, 24, [0, 2]),
    "Q8_0": (q8_0, 34, [0]),
    "Q2_K": (q2_k, 84, [80, 82]),
    "Q3_K": (q3_k, 110, [108]),
    "Q4_K": (q4_k, 144, [0, 2]),
    "Q5_K": (q5_k, 176, [0, 2]),
    "Q6_K": (q6_k, 210, [208]),
}


def read_back(path, data: np.ndarray, kind: str) -> np.ndarray:
    """The tensor as the package reads it from a file that holds nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4)
    kinds = gguf.GGMLQuantizationType
    writer.add_tensor("token_embd.weight", data, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(GGUFFile(path).tensors())["embed_tokens.weight"]()


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_dequantised_as_their_bytes_say(tmp_path, kind):
    decode, size, scales = BLOCKS[kind]
    rng = np.random.default_rng(list(BLOCKS).index(kind))
    blocks = rng.integers(0, 256, (6, size)).astype(np.uint8)
    for place in scales:
        drawn = rng.normal(size=6).astype(np.float16)
        blocks[:, place : place + 2] = drawn.view(np.uint8).reshape(6, 2)
    found = read_back(tmp_path / "m.gguf", blocks.reshape(3, -1), kind)
    expected = np.asarray([decode(block) for block in blocks]).reshape(3, -1)
    assert found.dtype == np.float32
    assert abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_numbers_are_read_as_they_are(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    if kind == "BF16":
        # The upper half of a float32's bits.
        bits = values.view(np.uint32) >> 16
        data, values = bits.astype(np.uint16).view(np.uint8), (bits << 16).view(np.float32)
    else:
        data = values.astype(np.float16 if kind == "F16" else np.float32)
        values = data.astype(np.float32)
    np.testing.assert_array_equal(read_back(tmp_path / "m.gguf", data, kind), values)
