"""Writes those of fuzz/seeds that are files of models: small and valid, by the libraries that users' files come
from. The others are written by hand.

python fuzz/seeds.py        needs numpy, gguf, safetensors, sentencepiece and tokenizers
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy
import sentencepiece
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SEEDS = Path(__file__).parent / "seeds"
VOCAB = 12


def shapes(hidden, inner, tied):
    yield "model.embed_tokens", "token_embd", (VOCAB, hidden)
    for part, short, shape in [
        ("input_layernorm", "attn_norm", (hidden,)),
        ("self_attn.q_proj", "attn_q", (hidden, hidden)),
        ("self_attn.k_proj", "attn_k", (hidden, hidden)),
        ("self_attn.v_proj", "attn_v", (hidden, hidden)),
        ("self_attn.o_proj", "attn_output", (hidden, hidden)),
        ("post_attention_layernorm", "ffn_norm", (hidden,)),
        ("mlp.gate_proj", "ffn_gate", (inner, hidden)),
        ("mlp.up_proj", "ffn_up", (inner, hidden)),
        ("mlp.down_proj", "ffn_down", (hidden, inner)),
    ]:
        yield f"model.layers.0.{part}", f"blk.0.{short}", shape
    yield "model.norm", "output_norm", (hidden,)
    if not tied:
        yield "lm_head", "output", (VOCAB, hidden)


def write_gguf(path, hidden, inner, kind, vocabulary, tied=False, rope_factors=False, part=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    w = gguf.GGUFWriter(path, "llama", split_max_tensors=part)
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(inner)
    w.add_head_count(1)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(hidden)
    if vocabulary == "gpt2":
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("smollm")
        w.add_token_list(["<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa", "abc", "1", "l", "o"])
        w.add_token_types([3, 3] + [1] * 10)
        w.add_token_merges(["a b", "Ġ a", "ab c"])
        w.add_bos_token_id(0)
        w.add_eos_token_id(1)
        w.add_add_bos_token(False)
        w.add_chat_template("{{ messages[0].content }}")
    else:
        w.add_tokenizer_model("llama")
        w.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", "<0xE3>", "▁", "a", "b", "▁a", "ab", "▁ab", "l"])
        w.add_token_scores([0.0] * 5 + [-5.0, -6.0, -7.0, -1.0, -2.0, -3.0, -8.0])
        w.add_token_types([2, 3, 3, 6, 6] + [1] * 7)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_add_space_prefix(True)
    random = numpy.random.default_rng(1)
    for _, name, shape in shapes(hidden, inner, tied):
        data = random.standard_normal(shape, dtype=numpy.float32)
        dtype = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else kind
        w.add_tensor(f"{name}.weight", gguf.quantize(data, dtype), raw_dtype=dtype)
    if rope_factors:
        w.add_tensor("rope_freqs.weight", numpy.ones(hidden // 2, dtype=numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def config(hidden, inner, **more):
    return json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": [1]} | more).encode()


def tensors(dtype, tied=False):
    random = numpy.random.default_rng(2)
    return {f"{name}.weight": random.standard_normal(shape).astype(dtype) for name, _, shape in shapes(4, 4, tied)}


def write_safetensors():
    out = SEEDS / "safetensors"
    out.mkdir(parents=True, exist_ok=True)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}
    f32 = tensors(numpy.float32)
    (out / "f32").write_bytes(config(4, 4) + b"\0" + save(f32, {"format": "pt"}))
    (out / "f16-tied").write_bytes(
        config(4, 4, tie_word_embeddings=True, rope_scaling=llama3) + b"\0" + save(tensors(numpy.float16, True)))
    # Two shards and their index, which come after the configuration: index, zero byte, first, its length, second.
    names = sorted(f32)
    first, second = ({n: f32[n] for n in part} for part in (names[:6], names[6:]))
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {n: files[n not in first] for n in names}
    index = json.dumps({"metadata": {"total_size": 400}, "weight_map": weight_map}).encode()
    a, b = save(first), save(second)
    (out / "sharded").write_bytes(config(4, 4) + b"\0" + index + b"\0" + len(a).to_bytes(2, "little") + a + b)


def write_tokenizers():
    out = SEEDS / "tokenizer"
    out.mkdir(parents=True, exist_ok=True)
    byte_level = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5, "l": 6},
                                      [("a", "b"), ("Ġ", "ab")]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(["<s>", "<|x|>"])
    byte_level.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    (out / "byte-level.json").write_text(byte_level.to_str())
    pieces = Tokenizer(models.BPE({"<unk>": 0, "<0x0A>": 1, "▁": 2, "a": 3, "▁a": 4, "l": 5}, [("▁", "a")],
                                  unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    (out / "pieces.json").write_text(pieces.to_str())
    text = ["ab abc abcab", "cab bac ab a b c", "abc ab"] * 20
    with open(out / "bpe.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=280, byte_fallback=True,
            normalization_rule_name="identity", hard_vocab_limit=False, user_defined_symbols=["<|x|>"])


def write_lora():
    out = SEEDS / "lora"
    out.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(3)
    for name, modules, more in [("qv", ["q_proj", "v_proj"], {}), ("down", ["down_proj"], {"use_rslora": True})]:
        peft = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": modules, "bias": "none",
                "task_type": "CAUSAL_LM", "rank_pattern": {}, "alpha_pattern": {}} | more
        paths = [f"mlp.{m}" if m == "down_proj" else f"self_attn.{m}" for m in modules]
        weights = {f"base_model.model.model.layers.0.{path}.lora_{side}.weight":
                   random.standard_normal(shape).astype(numpy.float32)
                   for path in paths for side, shape in [("A", (2, 4)), ("B", (4, 2))]}
        (out / name).write_bytes(json.dumps(peft).encode() + b"\0" + save(weights, {"format": "pt"}))


kinds = gguf.GGMLQuantizationType
write_gguf(SEEDS / "gguf/f32.gguf", 2, 2, kinds.F32, "gpt2")
write_gguf(SEEDS / "gguf/f16-tied-factors.gguf", 2, 2, kinds.F16, "llama", tied=True, rope_factors=True)
write_gguf(SEEDS / "gguf/q8_0.gguf", 32, 32, kinds.Q8_0, "llama")
write_gguf(SEEDS / "gguf/q4_0.gguf", 32, 32, kinds.Q4_0, "gpt2")
with tempfile.TemporaryDirectory() as tmp:
    write_gguf(Path(tmp) / "m.gguf", 2, 2, kinds.F32, "llama", part=6)
    a, b = ((Path(tmp) / f"m-0000{i}-of-00002.gguf").read_bytes() for i in (1, 2))
    (SEEDS / "gguf/split").write_bytes(b"S" + len(a).to_bytes(2, "little") + a + b)
write_gguf(SEEDS / "tokenizer/gpt2.gguf", 2, 2, kinds.F32, "gpt2", tied=True)
write_gguf(SEEDS / "tokenizer/llama.gguf", 2, 2, kinds.F32, "llama", tied=True)
write_safetensors()
write_tokenizers()
write_lora()
