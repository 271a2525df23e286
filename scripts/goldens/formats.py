#!/usr/bin/env python3
"""Writes tests/goldens/formats.json: number formats as ggml reads and writes them, and the log-probabilities of two
small models stored in many formats.

    LIMA_LLAMA_CPP=build/bin formats.py

The models' bytes are random quants, made alike here and in tests/it/formats.rs, so only their results are stored:
ggml's numbers, run by transformers in F32.

Needs: llama.cpp's libggml-base in LIMA_LLAMA_CPP; pip install torch transformers numpy
"""

import ctypes
import hashlib
import json
import os
import pathlib
import zlib

import numpy
import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens" / "formats.json"
GGML = ctypes.CDLL(str(pathlib.Path(os.environ["LIMA_LLAMA_CPP"]) / "libggml-base.so"))
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

# Number in GGUF, values and bytes of a block, places of f16 scales and minima in it.
FORMATS = {
    "F32": (0, 1, 4, [], []),
    "F16": (1, 1, 2, [], []),
    "BF16": (30, 1, 2, [], []),
    "Q8_0": (8, 32, 34, [0], []),
    "Q4_0": (2, 32, 18, [0], []),
    "Q4_1": (3, 32, 20, [0], [2]),
    "Q5_0": (6, 32, 22, [0], []),
    "Q5_1": (7, 32, 24, [0], [2]),
    "Q4_K": (12, 256, 144, [0], [2]),
    "Q5_K": (13, 256, 176, [0], [2]),
    "Q6_K": (14, 256, 210, [208], []),
}
# f16 bits of the scales and minima that give numbers of about 0.06.
SCALES = {
    "Q8_0": (0x1000, 0), "Q4_0": (0x2100, 0), "Q4_1": (0x2100, 0xAC80), "Q5_0": (0x1C80, 0), "Q5_1": (0x1C80, 0xAC80),
    "Q4_K": (0x0D00, 0x1980), "Q5_K": (0x0900, 0x1980), "Q6_K": (0x0400, 0),
}  # fmt: skip
MASK = (1 << 64) - 1


def random_u64(seed, n):
    """splitmix64's first n numbers."""
    z = numpy.uint64(seed) + numpy.arange(1, n + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def random_bytes(fmt, seed, values):
    """`values` numbers as any quants and sub-scales; of plain formats any sign and fraction of one exponent."""
    _, block, size, scales, minima = FORMATS[fmt]
    n = values // block * size
    raw = random_u64(seed, (n + 7) // 8).view(numpy.uint8)[:n].copy()
    if fmt == "F32":
        return (raw.view("<u4") & 0x807FFFFF | 122 << 23).view(numpy.uint8)
    if fmt == "F16":
        return (raw.view("<u2") & 0x83FF | 10 << 10).view(numpy.uint8)
    if fmt == "BF16":
        return (raw.view("<u2") & 0x807F | 122 << 7).view(numpy.uint8)
    raw = raw.reshape(-1, size)
    step = numpy.arange(len(raw), dtype=numpy.uint16) * 7 % 256
    for places, bits in zip((scales, minima), SCALES[fmt]):
        for at in places:
            raw[:, at : at + 2] = (numpy.uint16(bits) + step).astype("<u2")[:, None].view(numpy.uint8).reshape(-1, 2)
    return raw.reshape(-1)


def ggml_read(fmt, raw):
    _, block, size, _, _ = FORMATS[fmt]
    raw = numpy.ascontiguousarray(raw)
    if fmt == "F32":
        return raw.view("<f4").copy()
    if fmt == "F16":
        return raw.view("<f2").astype(numpy.float32)
    out = numpy.empty(len(raw) // size * block, numpy.float32)
    name = "ggml_bf16_to_fp32_row" if fmt == "BF16" else f"dequantize_row_{fmt.replace('Q', 'q')}"
    getattr(GGML, name)(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(len(out)))
    return out


def ggml_write(fmt, x, cols):
    number, block, size, _, _ = FORMATS[fmt]
    x = numpy.ascontiguousarray(x, numpy.float32)
    out = numpy.empty(x.size // block * size, numpy.uint8)
    # ggml asks for an importance matrix only of formats that are not used here.
    wrote = GGML.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, x.size // cols, cols, None)
    assert wrote == out.size, (fmt, wrote, out.size)
    return out


sha = lambda a: hashlib.sha256(numpy.ascontiguousarray(a).tobytes()).hexdigest()


def formats():
    """Two rows of 256 uneven numbers as ggml quantises them, then two of random blocks."""
    cols = 256
    units = (random_u64(1, 2 * cols) >> numpy.uint64(40)).astype(numpy.float32) / 2**23 - 1
    signal = units * (1 + numpy.arange(2 * cols) // 32 % 7).astype(numpy.float32) * numpy.float32(0.1)
    for fmt in FORMATS:
        raw = numpy.concatenate([ggml_write(fmt, signal, cols), random_bytes(fmt, 2, 2 * cols)])
        numbers = ggml_read(fmt, raw)
        to = {t: sha(ggml_write(t, numbers, cols)) for t in ["F32", "BF16", "Q8_0", "Q4_0"]}
        yield {"format": fmt, "cols": cols, "bytes": raw.tobytes().hex(), "values": sha(numbers), "to": to}


PARTS = ["q", "k", "v", "o", "gate", "up", "down"]
GGUF_NAMES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
MODELS = {
    # As in Q4_K_M files: finer types for some, and q, k, v unlike.
    "k-quants": (4, 2, "Q6_K", [["Q4_K", "Q4_K", "Q6_K", "Q5_K", "Q4_K", "Q5_K", "Q6_K"],
                                ["Q5_K", "Q6_K", "Q5_K", "Q4_K", "Q6_K", "Q6_K", "Q4_K"]]),
    # Heads of 8, so that parts end within a tile; products that want different activations side by side.
    "blocks of 32": (32, 1, "Q5_0", [["Q4_0", "Q4_1", "Q5_1", "Q5_0", "Q8_0", "F16", "BF16"],
                                     ["F32", "Q8_0", "BF16", "F16", "BF16", "F32", "Q5_1"]]),
    "one format each": (4, 2, "Q8_0", [["Q5_0"] * 3 + ["Q4_1", "Q5_1", "Q5_1", "Q4_0"],
                                       ["Q5_1"] * 3 + ["Q8_0", "Q5_0", "Q5_0", "F16"]]),
}  # fmt: skip
HIDDEN, INTERMEDIATE, VOCAB, LEN = 256, 512, 300, 40


def model(name):
    heads, kv_heads, embed, layers = MODELS[name]
    dim = HIDDEN // heads

    def tensor(gguf_name, fmt, rows, cols):
        return ggml_read(fmt, random_bytes(fmt, zlib.crc32(f"{name}/{gguf_name}".encode()), rows * cols)).reshape(rows, cols)

    def rotated(x):
        return x.reshape(-1, dim // 2, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)

    state = {"model.embed_tokens.weight": tensor("token_embd", embed, VOCAB, HIDDEN), "model.norm.weight": numpy.ones(HIDDEN)}
    for i, types in enumerate(layers):
        state[f"model.layers.{i}.input_layernorm.weight"] = numpy.ones(HIDDEN)
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = numpy.ones(HIDDEN)
        for part, gguf_name, fmt in zip(PARTS, GGUF_NAMES, types):
            rows = {"k": kv_heads * dim, "v": kv_heads * dim, "gate": INTERMEDIATE, "up": INTERMEDIATE}.get(part, HIDDEN)
            x = tensor(f"blk.{i}.{gguf_name}", fmt, rows, INTERMEDIATE if part == "down" else HIDDEN)
            block = "mlp" if part in ("gate", "up", "down") else "self_attn"
            state[f"model.layers.{i}.{block}.{part}_proj.weight"] = rotated(x) if part in "qk" else x
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=len(layers), num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=VOCAB, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, max_position_embeddings=128, attn_implementation="eager",
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).float().eval()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama.load_state_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in state.items()})
    tokens = [(i * i * 7 + 11 * i + 3) % VOCAB for i in range(LEN)]
    with torch.no_grad():
        rows = torch.log_softmax(llama(torch.tensor([tokens])).logits[0], -1)
    at = [0, LEN // 2, LEN - 1]
    print(name, "log-probability of the likeliest:", [round(float(rows[i].max()), 2) for i in at])
    kept = [[round(float(v), 5) for v in rows[i]] for i in at]
    return {
        "model": name, "heads": heads, "kv_heads": kv_heads, "embed": embed, "layers": layers, "tokens": tokens,
        "rows": list(zip(at, kept)),
    }  # fmt: skip


def main():
    provenance = {"script": "scripts/goldens/formats.py", "torch": torch.__version__, "transformers": transformers.__version__}
    lines = lambda items: "[\n" + ",\n".join(json.dumps(i, separators=(",", ":")) for i in items) + "\n]"
    text = f'{{"provenance":{json.dumps(provenance)},\n"formats":{lines(formats())},\n"models":{lines(map(model, MODELS))}}}\n'
    OUT.write_text(text)
    print(OUT.name, len(text), "bytes")


main()
