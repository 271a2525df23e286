#!/usr/bin/env python3
"""Makes tests/goldens/tokenizers/corpus.json: what other people's tokenizers make of 10,000 lines.

    .venv/bin/pip install llama-cpp-python sentencepiece protobuf tokenizers gguf numpy
    .venv/bin/python scripts/goldens/tokenizer_corpus.py --vocabs FOLDER [--model SmolLM2-135M-Instruct.Q4_1.gguf]

FOLDER has the `ggml-vocab-*.gguf` of llama.cpp: `vendor/llama.cpp/models` in llama-cpp-python's source package.
The lines are made of tests/goldens/tokenizers/fragments.json by a generator that the tests have too (`line`, here
and there). Digests are over 100 lines each, so that the file is small; the tests compute them again.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import struct

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"
OUT = GOLDENS / "tokenizers"
GROUPS = [g["fragments"] for g in json.loads((OUT / "fragments.json").read_text())["groups"]]
LINES, BLOCK = 10_000, 100
WHOLE = ["default", "ggml-vocab-llama-spm.gguf", "ggml-vocab-llama-bpe.gguf"]
MASK = (1 << 64) - 1

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
# The expressions in the models' own tokenizer.json.
EXPRESSIONS = {
    "llama-bpe": rf"(?i:{CONTRACTIONS})|{LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BREAKS}",
    "qwen2": rf"(?i:{CONTRACTIONS})|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BREAKS}",
    "seed-coder": rf"(?i:{CONTRACTIONS})|{LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{BREAKS}",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{TAIL}|{BREAKS}",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:{CONTRACTIONS})?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:{CONTRACTIONS})?|\p{{N}}{{1,3}}|{TAIL}|{BREAKS}",
}
DEEPSEEK_LLM = [
    r"[\r\n]",
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
]
EXPRESSIONS["smaug-bpe"] = EXPRESSIONS["llama-bpe"]
EXPRESSIONS["stablelm2"] = EXPRESSIONS["qwen2"]


class Generator:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed * 0x9E3779B97F4A7C15 & MASK

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        return (z ^ (z >> 31)) % n


def line(i):
    g = Generator(i)
    theme = GROUPS[g.below(len(GROUPS))]
    out = []
    for _ in range(1 + g.below(16)):
        kind = g.below(10)
        if kind == 0:
            out.append("".join(str(g.below(10)) for _ in range(1 + g.below(20))))
        else:
            group = theme if kind < 6 else GROUPS[g.below(len(GROUPS))]
            fragment = group[g.below(len(group))]
            times = 2 + g.below(40) if g.below(25) == 0 else 1
            out.append(fragment * times)
        out.append(["", " ", " ", "  ", "\n"][g.below(5)])
    return "".join(out)


def digest(items):
    return hashlib.sha256(b"".join(items)).hexdigest()[:16]


def packed(ids):
    return struct.pack(f"<{len(ids) + 1}I", *ids, 0xFFFFFFFF)


def digests(items):
    return [digest(items[i : i + BLOCK]) for i in range(0, len(items), BLOCK)]


def encoded(lines, encode, kept):
    """The ids of each line; read from the file `kept` if it is there."""
    if kept and kept.exists():
        return [[int(i) for i in l.split()] for l in kept.read_text().split("\n")]
    ids = [encode(text) for text in lines]
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("\n".join(" ".join(map(str, i)) for i in ids))
    return ids


class Gguf:
    def __init__(self, path):
        from gguf import GGUFReader

        fields = GGUFReader(path).fields
        get = lambda key: fields["tokenizer." + key].contents() if "tokenizer." + key in fields else None
        self.tokens, self.types, self.scores = get("ggml.tokens"), get("ggml.token_type"), get("ggml.scores")
        self.merges, self.pre = get("ggml.merges"), get("ggml.pre")


def llama_cpp(path):
    from llama_cpp import Llama

    llama = Llama(str(path), vocab_only=True, verbose=False)
    encode = lambda text: llama.tokenize(text.encode(), add_bos=False, special=False) if text else []
    return llama, encode


def token_bytes(llama, gguf):
    """What each token adds to the text; and the tokens that llama.cpp takes for control tokens by their names."""
    from llama_cpp import llama_cpp as c
    import ctypes

    buffer = ctypes.create_string_buffer(4096)
    out, by_name = [], []
    for i, (token, kind) in enumerate(zip(gguf.tokens, gguf.types)):
        length = c.llama_token_to_piece(llama._model.vocab, i, buffer, len(buffer), 0, False)
        assert length >= 0
        out.append(struct.pack("<I", length) + buffer.raw[:length])
        if length == 0 and kind not in (2, 3) and token:
            by_name.append(i)
    # Where a token is not written in the byte-level alphabet, llama.cpp prints what it cannot read.
    readable = not any(b"[UNK_BYTE_" in piece for piece in out)
    return {"bytes": digest(out) if readable else None, "control_by_name": by_name}


def sentencepiece_of(gguf):
    """The vocabulary as SentencePiece's own file, with LLaMA's flags."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    for token, score, kind in zip(gguf.tokens, gguf.scores, gguf.types):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(gguf.tokens)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def tokenizers_of(gguf, pre):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers as p

    merges = [split(m) for m in gguf.merges]
    ignore = pre in ("llama-bpe", "tekken")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(gguf.tokens)}, merges=merges, ignore_merges=ignore))
    if pre == "gpt-2":
        tok.pre_tokenizer = p.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        tok.pre_tokenizer = p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)])
    elif pre == "deepseek-llm":
        tok.pre_tokenizer = p.Sequence([*(p.Split(Regex(e), "isolated") for e in DEEPSEEK_LLM), p.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tok.pre_tokenizer = p.Sequence([p.Split(Regex(EXPRESSIONS[pre]), "isolated"), p.ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(gguf.tokens, gguf.types) if k in (2, 3)])
    tok.add_tokens([AddedToken(t, normalized=False) for t, k in zip(gguf.tokens, gguf.types) if k == 4])
    tok.encode_special_tokens = True
    return tok


def split(merge):
    at = merge.index(" ", 1)
    return merge[:at], merge[at + 1 :]


def trained(lines):
    """Small SentencePiece models with different flags: (name, file, processor)."""
    import io
    import sentencepiece

    cases = {
        "fallback": dict(byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False),
        "defaults": dict(byte_fallback=False),
        "no-prefix": dict(byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=True),
        "symbols": dict(byte_fallback=True, remove_extra_whitespaces=False, user_defined_symbols=["<sep>", "▁▁", "[INST]", "ab"], control_symbols=["<|im_end|>"], split_digits=True, allow_whitespace_only_pieces=True),
        "one-word": dict(byte_fallback=False, remove_extra_whitespaces=False, split_by_whitespace=False, split_by_unicode_script=False, unk_id=3, bos_id=0, eos_id=1, pad_id=2),
    }
    for name, flags in cases.items():
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([l.replace("\0", "") for l in lines[:3000]]), model_writer=file, model_type="bpe", vocab_size=1100,
            character_coverage=0.98, normalization_rule_name="identity", minloglevel=2, num_threads=1, max_sentence_length=100000, self_test_sample_size=0, **flags)
        yield name, file.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--vocabs", type=pathlib.Path, required=True)
    args.add_argument("--model", type=pathlib.Path)
    args.add_argument("--dump", type=pathlib.Path, help="a folder for all ids, to find a line that differs")
    args = args.parse_args()
    lines = [line(i) for i in range(LINES)]
    print("lines", len(lines), "characters", sum(map(len, lines)))
    text = [digest([t.encode() + b"\xff"]) for t in lines]
    golden = {"lines": LINES, "block": BLOCK, "text": digest([t.encode() for t in text]), "vocabularies": [], "sentencepiece": []}
    known = {}

    def add(file, reference, encode, decode=None, other=None, pre=None, **more):
        ids = encoded(lines, encode, args.dump and args.dump / f"{file}.{pre or ''}.{reference}")
        known[file, pre, reference] = ids
        # A fifth is enough of other models' vocabularies, and of a pre-tokenizer on one that is not its own.
        differ = sum(a != b for a, b in zip(ids, known[other])) if other in known else None
        ids = ids if file in WHOLE else ids[: LINES // 5]
        entry = {"file": file, "reference": reference, "pre": pre, "ids": digests([packed(i) for i in ids]), **more}
        if decode:
            entry["decoded"] = digests([decode(i).encode() + b"\xff" for i in ids])
        if differ is not None:
            entry["lines_that_llama_cpp_reads_otherwise"] = differ
        # llama.cpp's engine does not see that U+3000 is in one of DeepSeek's classes.
        if (file, reference) != ("ggml-vocab-deepseek-llm.gguf", "llama.cpp"):
            golden["vocabularies"].append(entry)
        print(file, reference, pre, entry.get("lines_that_llama_cpp_reads_otherwise"), flush=True)
        write()

    def write():
        (OUT / "corpus.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")

    for name, file, sp in trained(lines):
        ids = encoded(lines, sp.encode, args.dump and args.dump / f"sp.{name}")
        decode = lambda i: sp.decode([id for id in i if id != sp.unk_id()])
        golden["sentencepiece"].append({"name": name, "file": base64.b64encode(file).decode(), "ids": digests([packed(i) for i in ids]), "decoded": digests([decode(i).encode() + b"\xff" for i in ids]), "bos": sp.bos_id(), "eos": sp.eos_id()})
        print("sentencepiece", name, flush=True)
        write()

    names = ["llama-spm", "llama-bpe", "baichuan", "gpt-2", "aquila", "starcoder", "refact", "deepseek-coder", "mpt", "gpt-neox", "deepseek-llm", "qwen2", "command-r"]
    files = {f"ggml-vocab-{n}.gguf": args.vocabs / f"ggml-vocab-{n}.gguf" for n in names}
    if args.model:
        files = {"default": args.model, **files}
    pres = {"default": ["smollm"], "ggml-vocab-llama-bpe.gguf": ["llama-bpe"], "ggml-vocab-qwen2.gguf": ["qwen2"], "ggml-vocab-starcoder.gguf": ["smollm"], "ggml-vocab-deepseek-llm.gguf": ["deepseek-llm"],
            "ggml-vocab-gpt-2.gguf": ["gpt-2", "smollm", *EXPRESSIONS]}
    for file, path in files.items():
        gguf = Gguf(path)
        llama, encode = llama_cpp(path)
        # Qwen 2's own file composes characters first, llama.cpp does not. Under this name nobody does.
        llama_pre = "deepseek-r1-qwen" if gguf.pre == "qwen2" else None
        llamas = (file, llama_pre, "llama.cpp")
        add(file, "llama.cpp", encode, pre=llama_pre, **token_bytes(llama, gguf))
        for pre in pres.get(file, []):
            tok = tokenizers_of(gguf, pre)
            same = len(pres[file]) == 1 or pre == "gpt-2"
            encode = lambda t: tok.encode(t, add_special_tokens=False).ids
            if pre == "deepseek-llm":  # the library reads added tokens such as "ö" as bytes when it decodes
                add(file, "tokenizers", encode, None, llamas, pre, **token_bytes(llama, gguf))
            else:
                add(file, "tokenizers", encode, tok.decode, llamas if same else None, pre)
        if file == "ggml-vocab-llama-spm.gguf":
            sp = sentencepiece_of(gguf)
            add(file, "sentencepiece", sp.encode, sp.decode, llamas)


if __name__ == "__main__":
    main()
