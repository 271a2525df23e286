#!/usr/bin/env python3
"""Checkpoints of the LLaMA families, few layers of true shapes, with weights anybody can make again.

    families.py golden [NAME...]        writes tests/goldens/families/NAME.json with transformers in F32
    families.py checkpoint NAME DIR     writes config.json and model.safetensors (BF16) into DIR
    families.py list                    names, layers, parameters

Such checkpoints have up to billions of weights, so only what transformers computes with them is committed. The
weights themselves come from a counter and a hash, here and in tests/it/support/family.rs, and both make the same
bytes. Every weight is an odd number of at most 8 bits times a power of two, and thus exact in BF16, F16 and F32.

`golden` needs torch and transformers, and memory for the F32 weights of the family (6 GB for a layer of LLaMA-65B).
"""

import argparse
import gc
import json
import math
import pathlib
import platform
import struct
import sys
import time

import numpy

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens" / "families"

# --- shapes ---------------------------------------------------------------------------------------

LLAMA3_ROPE = dict(
    low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"
)


def first(hidden, inner, layers, heads, eps, **more):
    """The fields of the first conversions: no groups of heads, nothing about RoPE."""
    return dict(
        architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=hidden,
        initializer_range=0.02, intermediate_size=inner, max_sequence_length=2048, model_type="llama",
        num_attention_heads=heads, num_hidden_layers=layers, pad_token_id=0, rms_norm_eps=eps,
        tie_word_embeddings=False, torch_dtype="float16", transformers_version="4.28.0.dev0", use_cache=True,
        vocab_size=32000,
    ) | more


def second(hidden, inner, layers, heads, kv_heads, **more):
    """As transformers 4.31 wrote Llama 2."""
    config = first(hidden, inner, layers, heads, 1e-5)
    del config["max_sequence_length"]
    return config | dict(
        max_position_embeddings=4096, num_key_value_heads=kv_heads, pretraining_tp=1, rope_scaling=None,
        transformers_version="4.32.0.dev0",
    ) | more


def later(hidden, inner, layers, heads, kv_heads, **more):
    """As transformers 4.4x writes a Llama."""
    config = second(hidden, inner, layers, heads, kv_heads)
    del config["pad_token_id"]
    return config | dict(
        attention_bias=False, attention_dropout=0.0, mlp_bias=False, rope_theta=10000.0, torch_dtype="bfloat16",
        transformers_version="4.45.0",
    ) | more


def llama3(*shape, factor=None, **more):
    rope = dict(rope_theta=500000.0, rope_scaling=factor and dict(factor=factor, **LLAMA3_ROPE))
    tokens = dict(bos_token_id=128000, eos_token_id=[128001, 128008, 128009] if factor else 128001)
    context = 131072 if factor else 8192
    return later(*shape, vocab_size=128256, max_position_embeddings=context, **rope, **tokens) | more


def smollm2(*shape, **more):
    return later(
        *shape, vocab_size=49152, max_position_embeddings=8192, rope_theta=100000, tie_word_embeddings=True,
        pad_token_id=2, is_llama_config=True, rope_interleaved=False,
    ) | {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}}} | more


def k2(**more):
    config = later(8192, 22016, 80, 64, 64, vocab_size=32032, max_position_embeddings=2048)
    return config | dict(max_sequence_length=2048, bos_token_id=None, pad_token_id=0, torch_dtype="float16") | more


def newest(config):
    """The same in the words of transformers 5."""
    config = dict(config)
    rope = config.pop("rope_scaling", None) or dict(rope_type="default")
    config["rope_parameters"] = dict(rope, rope_theta=config.pop("rope_theta", 10000.0))
    config["dtype"] = config.pop("torch_dtype")
    return config | dict(transformers_version="5.23.0")


# name: (configuration, layers of the golden, or 0 for none)
FAMILIES = {
    "llama-7b": (first(4096, 11008, 32, 32, 1e-6), 1),
    "llama-13b": (first(5120, 13824, 40, 40, 1e-6), 0),
    "llama-30b": (first(6656, 17920, 60, 52, 1e-6), 1),
    "llama-65b": (first(8192, 22016, 80, 64, 1e-5, architectures=["LLaMAForCausalLM"], pad_token_id=-1), 0),
    # LIMA: one more token ends a turn; 32,001 rows filled up to a multiple of 64. The config in transformers 5's words.
    "lima-65b": (
        newest(first(8192, 22016, 80, 64, 1e-5, vocab_size=32064, eos_token_id=[2, 32000], torch_dtype="bfloat16")), 1
    ),
    "llama-2-7b": (second(4096, 11008, 32, 32, 32), 0),
    "llama-2-7b-32k": (
        second(4096, 11008, 32, 32, 32, max_position_embeddings=32768, rope_scaling=dict(factor=8.0, type="linear")), 1
    ),
    "llama-2-13b": (second(5120, 13824, 40, 40, 40, pretraining_tp=2), 1),
    "llama-2-70b": (second(8192, 28672, 80, 64, 8), 1),
    "llama-3-8b": (llama3(4096, 14336, 32, 32, 8), 1),
    "llama-3-70b": (llama3(8192, 28672, 80, 64, 8), 0),
    "llama-3.1-8b": (newest(llama3(4096, 14336, 32, 32, 8, factor=8.0, head_dim=128)), 1),
    "llama-3.1-70b": (llama3(8192, 28672, 80, 64, 8, factor=8.0), 0),
    "llama-3.1-405b": (llama3(16384, 53248, 126, 128, 8, factor=8.0), 0),
    "llama-3.2-1b": (llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tie_word_embeddings=True), 1),
    "llama-3.2-3b": (llama3(3072, 8192, 28, 24, 8, factor=32.0, head_dim=128, tie_word_embeddings=True), 1),
    "smollm2-135m": (smollm2(576, 1536, 30, 9, 3, head_dim=64), 2),
    "smollm2-360m": (smollm2(960, 2560, 32, 15, 5, head_dim=64), 2),
    "smollm2-1.7b": (newest(smollm2(2048, 8192, 24, 32, 32, rope_theta=130000)), 1),
    "tinyllama-1.1b": (later(2048, 5632, 22, 32, 4, max_position_embeddings=2048), 2),
    "k2-65b": (k2(), 1),
    "k2-65b-chat": (k2(max_position_embeddings=8192, max_sequence_length=8192, rope_theta=500000.0), 0),
}


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def tensors(config):
    """Name and shape of every tensor, in the order of the file."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * head_dim(config)
    kv = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head_dim(config)
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        for part, shape in [
            ("input_layernorm", (hidden,)), ("self_attn.q_proj", (q, hidden)), ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, q)),
            ("post_attention_layernorm", (hidden,)), ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ]:
            yield f"model.layers.{i}.{part}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocab, hidden)


def parameters(config):
    return sum(math.prod(shape) for _, shape in tensors(config))


# --- weights --------------------------------------------------------------------------------------


def name_seed(name):
    """FNV-1a over the name's bytes, 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def hashed(start, count, seed):
    """`count` words of the counter from `start` on; four weights each."""
    x = numpy.arange(start, start + count, dtype=numpy.uint32)
    x *= numpy.uint32(0x9E3779B9)
    x += numpy.uint32(seed)
    x ^= x >> 16
    x *= numpy.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= numpy.uint32(0x846CA68B)
    x ^= x >> 16
    return x


def table(shape):
    """What each value of a byte stands for, in F32: odd numbers from -255 to 255, times a power of two.

    Of matrices the power of two that brings the standard deviation closest to 1.5 / sqrt(columns), so that queries
    and keys, and with them the attention, are neither flat nor saturated. Norms are 1 and up to an eighth.
    """
    odd = 2.0 * numpy.arange(256, dtype=numpy.uint8).view(numpy.int8).astype(numpy.float32) + 1
    if len(shape) == 1:
        # Multiples of 1/128: what BF16 has between 1 and 2, and half of what it has below.
        return numpy.float32(1) + numpy.floor(odd / 16) / 128
    return odd * numpy.float32(2.0 ** -scale_exponent(shape[1]))


def scale_exponent(columns):
    return round(math.log2(255 / math.sqrt(3) * math.sqrt(columns) / 1.5))


def values(name, shape, chunk=1 << 22):
    """The tensor's weights in F32, some at a time."""
    count, seed, lookup = math.prod(shape), name_seed(name), table(shape)
    assert count % 4 == 0
    for start in range(0, count // 4, chunk):
        n = min(chunk, count // 4 - start)
        yield lookup[hashed(start, n, seed).view(numpy.uint8)]


def to_bf16(x):
    bits = x.view(numpy.uint32)
    assert not (bits & 0xFFFF).any(), "weights are exact in BF16"
    return (bits >> 16).astype(numpy.uint16)


def few_layers(name, layers=None):
    config, golden = FAMILIES[name]
    return dict(config, num_hidden_layers=layers or golden or 1)


def write_checkpoint(config, folder):
    """config.json and one model.safetensors in BF16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors(config):
        size = 2 * math.prod(shape)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(config):
            for part in values(name, shape):
                to_bf16(part).tofile(file)


# --- goldens --------------------------------------------------------------------------------------


def empty(config):
    """transformers' model in F32, of the configuration as it would be read from disk; its weights are anything."""
    import tempfile

    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        read = transformers.AutoConfig.from_pretrained(folder)
    assert type(read).__name__ == "LlamaConfig"
    read._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(read)
    rotary = type(model.model.rotary_emb)(read)
    model = model.to_empty(device="cpu").float()
    model.model.rotary_emb = rotary
    if config.get("tie_word_embeddings"):
        model.tie_weights()
    return model.eval()


def fill(model, config):
    """The family's weights."""
    import torch

    state = model.state_dict()
    for name, shape in tensors(config):
        assert tuple(state[name].shape) == shape, f"{name} has another shape"
        flat, at = state[name].view(-1), 0
        for part in values(name, shape):
            flat[at : at + part.size] = torch.from_numpy(part)
            at += part.size
    left = set(state) - {name for name, _ in tensors(config)} - {"lm_head.weight"}
    assert not left, f"{left} were not filled"


def build(config):
    model = empty(config)
    fill(model, config)
    return model


def prompt(name, length, vocab):
    return [int(x) % vocab for x in hashed(0, length, name_seed(name + " prompt"))]


def golden_positions(length):
    return sorted({0, 1, length // 2, length - 2, length - 1})


def log_probs(model, tokens, positions):
    import torch

    with torch.inference_mode():
        hidden = model.model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0, positions]
        return torch.log_softmax(model.lm_head(hidden).double(), -1)


def without_scaling(model, tokens, positions):
    """What the model would say if its scaling of RoPE were ignored: the golden must tell the two apart."""
    import copy

    rotary, plain = model.model.rotary_emb, copy.deepcopy(model.config)
    theta = plain.rope_parameters["rope_theta"]
    plain.rope_parameters = dict(rope_type="default", rope_theta=theta)
    model.model.rotary_emb = type(rotary)(plain)
    rows = log_probs(model, tokens, positions)
    model.model.rotary_emb = rotary
    return rows


def golden(name):
    import torch
    import transformers

    started = time.time()
    config = few_layers(name)
    model = build(config)
    scaled = bool(config.get("rope_scaling")) or config.get("rope_parameters", {}).get("rope_type", "default") != "default"
    sequences, effect = [], 0.0
    for length in [3, 500 if scaled else 40]:
        tokens = prompt(f"{name} {length}", length, config["vocab_size"])
        positions = golden_positions(length)
        rows = log_probs(model, tokens, positions)
        if scaled:
            effect = max(effect, float((without_scaling(model, tokens, positions) - rows).abs().max()))
        out = []
        for position, row in zip(positions, rows):
            best = row.topk(8).indices.tolist()
            # Ids from all over the vocabulary, its last rows among them.
            vocab = config["vocab_size"]
            some = prompt(f"{name} ids {position}", 24, vocab) + [vocab - 1, vocab - 2]
            ids = list(dict.fromkeys(best + some))
            out.append(dict(position=position, ids=ids, logprobs=[round(float(row[i]), 6) for i in ids]))
        sequences.append(dict(prompt=tokens, rows=out))
    del model
    gc.collect()
    spread = max(r["logprobs"][0] for s in sequences for r in s["rows"])
    provenance = dict(
        script="scripts/goldens/families.py", torch=torch.__version__, transformers=transformers.__version__,
        numpy=numpy.__version__, python=platform.python_version(), dtype="float32",
    )
    first_words = [int(x) for x in hashed(0, 4, name_seed("model.norm.weight"))]
    value = dict(
        provenance=provenance, parameters=parameters(FAMILIES[name][0]), config=config, hash_words=first_words,
        effect_of_scaling=round(effect, 3) if scaled else None,
    )
    compact = lambda v: json.dumps(v, separators=(",", ":"))
    text = ",\n".join(f"{json.dumps(k)}:{compact(v)}" for k, v in value.items())
    text = "{" + text + ',\n"sequences":[\n' + ",\n".join(map(compact, sequences)) + "\n]}\n"
    GOLDENS.mkdir(parents=True, exist_ok=True)
    (GOLDENS / f"{name}.json").write_text(text)
    print(f"{name}: {parameters(config) / 1e6:.0f} M weights, {time.time() - started:.0f} s, best {spread:.2f}", flush=True)


def shapes():
    """All configurations, at full depth, and the weights each must have."""
    lines = ",\n".join(
        json.dumps(dict(name=name, layers=layers, parameters=parameters(config), config=config), separators=(",", ":"))
        for name, (config, layers) in FAMILIES.items()
    )
    GOLDENS.mkdir(parents=True, exist_ok=True)
    (GOLDENS / "shapes.json").write_text("[\n" + lines + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden").add_argument("names", nargs="*")
    commands.add_parser("list")
    checkpoint = commands.add_parser("checkpoint")
    checkpoint.add_argument("name")
    checkpoint.add_argument("folder", type=pathlib.Path)
    checkpoint.add_argument("--layers", type=int)
    args = parser.parse_args()
    if args.command == "list":
        for name, (config, layers) in FAMILIES.items():
            print(f"{name:16} {config['num_hidden_layers']:3} layers {parameters(config):15,} weights, golden: {layers}")
    elif args.command == "checkpoint":
        write_checkpoint(few_layers(args.name, args.layers), args.folder)
    else:
        shapes()
        for name in args.names or [n for n, (_, layers) in FAMILIES.items() if layers]:
            golden(name)


if __name__ == "__main__":
    sys.exit(main())
