#!/usr/bin/env python3
"""Makes tests/goldens/tokenizers/directories.json: model directories with `tokenizer.model`, as transformers reads them.

    .venv/bin/pip install transformers tokenizers sentencepiece protobuf jinja2
    .venv/bin/python scripts/goldens/tokenizer_dirs.py

The SentencePiece model is one of those in corpus.json, which `tokenizer_corpus.py` makes.
"""

import base64
import json
import pathlib
import tempfile

from transformers import AutoTokenizer

from tokenizer import CHATML, CONVERSATIONS, OUT, TEMPLATES

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# LIMA's: each turn ends with a token of its own.
LIMA = "{{ bos_token }}{% for message in messages %}{{ message['content'] + '<|EOT|>' }}{% endfor %}"


def token(content, special=True, **flags):
    base = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
    return {**base, **flags}


def directories(n):
    """Name, files beside tokenizer.model. `n` is the number of pieces."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    base = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    own = {str(i): token(t) for i, t in enumerate(["<unk>", "<s>", "</s>"])}
    yield "llama-1", {"tokenizer_config.json": {**base, "bos_token": "", "eos_token": "", "unk_token": ""} | names, "special_tokens_map.json": {}}
    yield "llama-2", {
        "tokenizer_config.json": {**base, "legacy": False, **{k: {**token(v), "__type": "AddedToken"} for k, v in names.items()}, "chat_template": LLAMA2},
        "special_tokens_map.json": {k: token(v) for k, v in names.items()},
    }
    yield "legacy", {"tokenizer_config.json": {**base, **names, "legacy": True, "chat_template": LLAMA2}, "special_tokens_map.json": names}
    yield "tinyllama", {"tokenizer_config.json": {**base, **names, "legacy": False, "pad_token": "</s>", "chat_template": TEMPLATES["zephyr"]}}
    yield "mistral", {"tokenizer_config.json": {**base, **names, "legacy": False, "added_tokens_decoder": own, "chat_template": MISTRAL}}
    added = {**own, str(n): token("<|im_start|>"), str(n + 1): token("<|im_end|>", rstrip=True), str(n + 2): token("<tool>", special=False, lstrip=True)}
    yield "chatml", {
        "tokenizer_config.json": {**base, **names, "legacy": False, "added_tokens_decoder": added, "chat_template": [{"name": "default", "template": CHATML}, {"name": "rag", "template": "x"}]},
        "added_tokens.json": {"<|im_start|>": n, "<|im_end|>": n + 1, "<tool>": n + 2},
    }
    yield "lima", {
        "tokenizer_config.json": {**base, **names, "legacy": False, "additional_special_tokens": ["<|EOT|>"], "added_tokens_decoder": {**own, str(n): token("<|EOT|>")}},
        "chat_template.jinja": LIMA,
    }
    yield "no-prefix", {"tokenizer_config.json": {**base, **names, "legacy": False, "add_prefix_space": False, "add_eos_token": True, "chat_template": MISTRAL}}


TEXTS = ["", " ", "Hello", " Hello  world", "the</s>of", "<s>the of", "<s> the", "a <tool> b", "x <|im_end|> y", "été 中 😀\n\n", "1234", "<s></s>", "\n", "▁x", "<|im_start|>user\nthe<|im_end|>\n the"]


def main():
    model = json.loads((OUT / "tokenizers" / "corpus.json").read_text())["sentencepiece"][0]
    file = base64.b64decode(model["file"])
    import sentencepiece

    n = sentencepiece.SentencePieceProcessor(model_proto=file).get_piece_size()
    golden = {"model": model["file"], "directories": []}
    for name, files in directories(n):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "tokenizer.model").write_bytes(file)
            files = {k: v if isinstance(v, str) else json.dumps(v) for k, v in files.items()}
            for k, v in files.items():
                (folder / k).write_text(v)
            (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
            tok = AutoTokenizer.from_pretrained(folder)
            case = {"name": name, "files": files, "bos": tok.bos_token_id, "eos": tok.eos_token_id, "chats": []}
            case["encode"] = [[t, tok.encode(t)] for t in TEXTS]
            if tok.chat_template:
                for which in ("user", "system", "turns", "long"):
                    for add in (False, True):
                        chat = [CONVERSATIONS[which], add]
                        try:
                            text = tok.apply_chat_template(CONVERSATIONS[which], add_generation_prompt=add, tokenize=False)
                            ids = tok.apply_chat_template(CONVERSATIONS[which], add_generation_prompt=add, tokenize=True, return_dict=False)
                            case["chats"].append([*chat, text, ids])
                        except Exception as e:
                            case["chats"].append([*chat, None, str(e)])
            golden["directories"].append(case)
            print(name, type(tok).__name__, len(case["chats"]))
    (OUT / "tokenizers" / "directories.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
