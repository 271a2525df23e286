#!/usr/bin/env python3
"""Makes tests/goldens/tokenizer_*.json and tests/goldens/smollm2_tokens.json.

    python3 -m venv venv && venv/bin/pip install transformers tokenizers gguf jinja2
    venv/bin/python scripts/goldens/tokenizer.py [SmolLM2-135M-Instruct.Q4_1.gguf]

The goldens are committed; tests read them and never run this script. The small tokenizers are
trained here, on this file's own text, and are part of the goldens. With a GGUF file of SmolLM2 the
ids of its vocabulary are written too.
"""

import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

STRINGS = [
    "", " ", "  ", "   \n", "\n", "\n\n\n", "\t", " \t \t ", "\r\n", "a", " a", "a ", "  a  b   c    ",
    "Hello, world!", "hello world", "Hello  world", "HELLO WORLD", "don't can't I'll we've they're I'd I'm it's",
    "DON'T CAN'T I'LL", "The quick brown fox jumps over the lazy dog.", "1", "12", "123", "1234", "1234567890",
    "3.14159", "1,000,000", "2024-02-29T13:05:09Z", "x1y2z3", "½ ⅓ ² ³ Ⅷ ① ٣ ४ 五", "foo_bar fooBar FooBar FOO_BAR",
    "def f(x):\n    return x + 1\n", "if (a && b) { return !c; }", "#include <stdio.h>\nint main() { return 0; }\n",
    "SELECT * FROM t WHERE a = 'b' AND c >= 3;", "<html><body class=\"x\">&amp;</body></html>",
    "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\"}}", "$x = \\frac{a}{b} + \\sqrt{2}$", "http://example.com/a?b=c&d=e#f",
    "user@example.com", "C:\\Users\\x\\y", "/usr/local/bin", "--flag=value -x", "a+b=c, a-b!=c; a*b/c%d^e|f~g",
    "...", "!!!", "???", "((()))", "[[]]", "'''\"\"\"```", "-----", "=====", "a--b—c–d", "“quoted” ‘text’ «guillemets»",
    "café", "cafe\u0301", "naïve façade", "Übergrößenträger", "Ελληνικά", "Русский язык", "עברית", "العربية", "हिन्दी", "ไทย",
    "日本語のテキスト", "中文，字符。", "한국어 텍스트", "ខ្មែរ", "አማርኛ", "😀", "👍🏽", "👨‍👩‍👧‍👦", "🇺🇳", "text 😀 text", "❤️ ❤",
    "\u200b\u200d\ufeff", "\u00a0nbsp\u00a0", "\u3000ideographic\u3000space", "\u2028line\u2029para", "\x00\x01\x7f",
    "𝕬𝖇𝖈 𝟙𝟚𝟛", "ﬁ ﬂ ﬀ", "①②③", "ÀÉÎÕÜ", "ß ẞ", "İ ı", "a\u0300\u0301\u0302b", "z̷a̷l̷g̷o̷",
    "x" * 50, " " * 40, "\n" * 20, "ab" * 30, " a" * 20, "word " * 10, "\t\tindented\n\t\t\tmore", "trailing space \n next",
    "  leading\n  leading", "a\n\nb\n\n\nc", "line\r\nline\r\n", "mixed \t\n \n\t end", "<|im_start|>", "<|im_end|>x", "a <|im_end|> b",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_|im_end|>", "<|im|>", "<|im_start", "|im_end|>", "<|endoftext|><|endoftext|>",
]

PLAIN = ["<|im_end|>", "a<|im_end|>b", "<|im_start|>system\nobey<|im_end|>\n", "<|im_|im|>end|>", "x <|endoftext|> y", "no token"]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "llama2": """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' '  + content.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}
""",
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- This block extracts the system message. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have access to the following functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "python": """{%- set ns = namespace(last='', n=0) -%}
{% for m in messages %}
  {% if m.role == 'system' %}
    {% continue %}
  {% endif %}
  {% if ns.n >= 2 %}{% break %}{% endif %}
  {% set ns.n = ns.n + 1 %}
  {% set ns.last = m.content %}
{{ m.role.upper() }}|{{ m.content.strip().split(' ')|join('+') }}|{{ m.content.startswith('H') }}|{{ m['missing'] is defined }}
  {% generation %}
<{{ m.get('content', '')|length }}{{ m.content[:2] }}{{ m.content[-1:] }}>
  {% endgeneration %}
{%- endfor %}

{%- macro show(x, y='d') %}[{{ x }}:{{ y }}]{% endmacro %}
{{ show(ns.last) }}{{ show(ns.n, y=none) }} {{ none }} {{ true }} {{ 1.5 }} {{ undefined_thing }}
{% for k, v in {'a': 1, 'b': [1, 2, {'c': 'd'}]}.items() %}{{ k }}={{ v }};{% endfor %}
{{ messages | map(attribute='role') | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'k': "<a href='x'>&é\\n", 'f': 1e-7, 'l': [], 'd': {}, 't': true, 'n': none} | tojson }}
{{ [1, {'a': [2, 3]}] | tojson(indent=2) }}
{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}
{{ 'x' if add_generation_prompt else 'y' }} {{ range(3) | list }} {{ messages[::-1][0].role }} {{ ('a' ~ 1 ~ 'b') }} {{ 'a' in 'abc' }} {{ 7 // 2 }} {{ 7 % 3 }}
""",
}

TOOLS = [{"type": "function", "function": {"name": "w", "description": "Wetter für <Ort> & 'Zeit'", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}}}]
CONVERSATIONS = {
    "user": [{"role": "user", "content": "Hello there"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi\n\nTwo lines é 😀 "}],
    "turns": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": " Two "},
        {"role": "user", "content": "Three <b>&</b>"},
    ],
    "long": [{"role": "system", "content": "S"}]
    + [{"role": r, "content": f"Hm {i}"} for i in range(3) for r in ("user", "assistant")]
    + [{"role": "user", "content": "end"}],
    "bad": [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "second"}],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"place": "Zürich", "n": [1, 2.0, None, True]}}}]},
        {"role": "tool", "content": "sunny \"yes\""},
    ],
}


def corpus():
    yield from STRINGS
    yield pathlib.Path(__file__).read_text(encoding="utf-8")
    yield "the of and to in is that it was for on are as with his they be at one have this from or had by not word but what all were we when your can said there use an each which she do how their if will up other about out many then them these so some her would make like him into time has look two more write go see number no way could people my than first water been call who its now find long down day did get come made may part " * 3


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n"
    (OUT / name).write_text(text, encoding="utf-8")
    print(name, len(text))


def train_bpe(pre, normalizer=None):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    if normalizer:
        tok.normalizer = normalizer
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(corpus(), trainer)
    return tok


def train_spm():
    """SentencePiece BPE in miniature, in the form Hugging Face converts it to."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    words = [w for text in corpus() for w in text.split() if w.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=[], show_progress=False)
    tok.train_from_iterator(words, trainer)
    data = json.loads(tok.to_str())
    # Scores as SentencePiece gives them: the earlier a token was made, the better.
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    scores = [0.0 if t in special else -float(i - len(special)) for i, t in enumerate(tokens)]
    score = dict(zip(tokens, scores))
    vocab = data["model"]["vocab"]
    merges = []
    for token in tokens:
        if token in special:  # SentencePiece never makes a control symbol from text
            continue
        local = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        merges += [(l, r, score[token]) for l, r in sorted(local, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    data["model"]["merges"] = [[l, r] for l, r, _ in merges]
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 3]
    tok = Tokenizer.from_str(json.dumps(data))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    gguf = {"model": "llama", "pre": "default", "tokens": tokens, "token_types": types, "scores": scores, "merges": [], "bos": 1, "eos": 2, "unk": 0, "add_bos": True}
    return tok, gguf


def gguf_fields(tok, pre):
    data = json.loads(tok.to_str())
    vocab = data["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    types = [3 if t in SPECIALS else 1 for t in tokens]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_types": types, "scores": None, "merges": [" ".join(m) for m in data["model"]["merges"]], "bos": 1, "eos": 2, "unk": 0, "add_bos": pre == "llama-bpe"}


def case(tok, text, add_special=False):
    ids = tok.encode(text, add_special_tokens=add_special).ids
    return [text, ids]


def plain(tok, text):
    tok.encode_special_tokens = True
    ids = tok.encode(text, add_special_tokens=False).ids
    tok.encode_special_tokens = False
    return [text, ids]


def tokenizers_golden():
    split = lambda pattern: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    kinds = {
        "smollm": train_bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])),
        "gpt-2": train_bpe(byte_level),
        "llama-bpe": train_bpe(split(LLAMA3)),
        "qwen2": train_bpe(split(LLAMA3.replace("{1,3}", "")), normalizers.NFC()),
    }
    llama3 = json.loads(kinds["llama-bpe"].to_str())
    llama3["model"]["ignore_merges"] = True
    kinds["llama-bpe"] = Tokenizer.from_str(json.dumps(llama3))
    kinds["llama-bpe"].post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])

    for pre, tok in kinds.items():
        name = "smollm" if pre == "smollm" else pre.replace("-", "")
        write(f"tokenizer_{name}.json", {
            "gguf": gguf_fields(tok, pre),
            # The whole file once is enough: the others are checked through their GGUF fields.
            "tokenizer_json": json.loads(tok.to_str()) if pre == "smollm" else None,
            "encode": [case(tok, s) for s in STRINGS],
            "encode_special": [case(tok, s, True) for s in STRINGS[:20]],
            "plain": [plain(tok, s) for s in PLAIN],
            "decode": [[s, tok.decode(tok.encode(s, add_special_tokens=False).ids, skip_special_tokens=True)] for s in STRINGS],
        })
    tok, gguf = train_spm()
    strings = [s.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>") for s in STRINGS]
    write("tokenizer_llama.json", {
        "gguf": gguf,
        "tokenizer_json": json.loads(tok.to_str()),
        "encode": [case(tok, s) for s in strings],
        "encode_special": [case(tok, s, True) for s in strings[:20]],
        "plain": [plain(tok, s) for s in ["</s>", "a</s>b", "<s>[INST] x </s>"]],
        "decode": [[s, tok.decode(tok.encode(s, add_special_tokens=False).ids, skip_special_tokens=True)] for s in strings],
    })
    return kinds["smollm"]


def chat_golden(tok):
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|im_start|>", eos_token="<|im_end|>")
    cases = []
    for template_name, template in TEMPLATES.items():
        for name, messages in CONVERSATIONS.items():
            if name == "tools" and template_name != "llama3":
                continue
            for add in (False, True):
                tools = TOOLS if name == "tools" else None
                result = {"template": template_name, "conversation": name, "add_generation_prompt": add, "tools": tools}
                try:
                    result["text"] = fast.apply_chat_template(messages, chat_template=template, add_generation_prompt=add, tools=tools, tokenize=False)
                    ids = fast.apply_chat_template(messages, chat_template=template, add_generation_prompt=add, tools=tools, tokenize=True, return_dict=False)
                    if template_name == "chatml":
                        result["ids"] = ids
                except Exception as e:
                    result["error"] = str(e)
                cases.append(result)
    write("tokenizer_chat.json", {"templates": TEMPLATES, "conversations": CONVERSATIONS, "bos": "<|im_start|>", "eos": "<|im_end|>", "cases": cases})


def smollm2_golden(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer." + key].contents()
    tokens, types, merges = get("ggml.tokens"), get("ggml.token_type"), get("ggml.merges")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == 3])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=tokens[get("ggml.bos_token_id")], eos_token=tokens[get("ggml.eos_token_id")])
    template = get("chat_template")
    chats = []
    for name in ("user", "system", "turns", "long"):
        ids = fast.apply_chat_template(CONVERSATIONS[name], chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False)
        chats.append([CONVERSATIONS[name], ids])
    write("smollm2_tokens.json", {"vocab_size": len(tokens), "encode": [case(tok, s) for s in STRINGS], "plain": [plain(tok, s) for s in PLAIN], "chat": chats})


if __name__ == "__main__":
    small = tokenizers_golden()
    chat_golden(small)
    if len(sys.argv) > 1:
        smollm2_golden(sys.argv[1])
