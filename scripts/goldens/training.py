#!/usr/bin/env python3
"""Makes tests/goldens/training.json: ids of finished conversations, and which of them the assistant is trained on.

    .venv/bin/pip install transformers tokenizers jinja2
    .venv/bin/python scripts/goldens/training.py

The tokenizers are the small ones of tokenizer_*.json. Where a template has generation tags the mask is transformers'
own; otherwise a conversation is written down as pieces of text, here, by hand, and a token is trained on if it has any
of the assistant's.
"""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tokenizer import CHATML, OUT, TEMPLATES, write

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMA = (ROOT / "src/train/lima.jinja").read_text(encoding="utf-8")
EOT = "<|lima_eot|>"
TAGGED_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(*texts, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


CONVERSATIONS = [
    chat("Hello there", "Hi! How can I help?"),
    chat("One", "Two", "Three <b>&</b>", "Four\n\n- five\n- six", "Seven", "Eight."),
    chat("What is 2+2?", "4", system="Be brief."),
    chat("été 中 😀\n", "\n\n  👨‍👩‍👧‍👦 é  \n"),
    chat("the of and", "  the word  was "),
    chat("x" * 40, " " * 9 + "a" + " " * 9),
    chat("Say it.", "ab" * 30 + "\n" * 5 + "1234567890"),
]


def chatml(messages):
    if messages[0]["role"] != "system":
        yield "<|im_start|>system\nBe helpful.<|im_end|>\n", False
    for m in messages:
        yield f"<|im_start|>{m['role']}\n", False
        yield m["content"] + "<|im_end|>", m["role"] == "assistant"
        yield "\n", False


def llama2(messages):
    system = ""
    if messages[0]["role"] == "system":
        system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
    for i, m in enumerate(messages):
        if m["role"] == "user":
            text = (system if i == 0 else "") + m["content"]
            yield f"<s>[INST] {text.strip()} [/INST]\n", False
        else:
            yield f" {m['content'].strip()} </s>", True
            yield "\n", False


def by_hand(tok, pieces, expected):
    text, regions = "", []
    for piece, trained in pieces:
        if trained:
            regions.append((len(text), len(text) + len(piece)))
        text += piece
    assert text == expected, (text, expected)
    encoding = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(a < end and b > start for start, end in regions)) for a, b in encoding["offset_mapping"]]
    return encoding["input_ids"], mask


def main():
    cases = []
    plans = [
        ("smollm", "lima", LIMA, None, EOT), ("smollm", "chatml with tags", TAGGED_CHATML, None, "<|im_end|>"),
        ("smollm", "chatml", CHATML, chatml, "<|im_end|>"), ("llama", "lima", LIMA, None, EOT),
        ("llama", "llama2", TEMPLATES["llama2"], llama2, "</s>"),
    ]
    for kind, name, template, hand, end in plans:
        golden = json.loads((OUT / f"tokenizer_{kind}.json").read_text(encoding="utf-8"))
        backend = Tokenizer.from_str(json.dumps(golden["tokenizer_json"]))
        tokens = golden["gguf"]["tokens"]
        if end == EOT:
            backend.add_tokens([AddedToken(EOT, special=True, normalized=False)])
        tok = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=tokens[golden["gguf"]["bos"]], eos_token=tokens[golden["gguf"]["eos"]])
        rows = []
        for messages in CONVERSATIONS:
            if hand:
                ids, mask = by_hand(tok, hand(messages), tok.apply_chat_template(messages, chat_template=template, tokenize=False))
            else:
                made = tok.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
                ids, mask = made["input_ids"], made["assistant_masks"]
            assert len(ids) == len(mask) and 0 < sum(mask) < len(mask)
            rows.append({"messages": messages, "ids": ids, "mask": mask})
        cases.append({"tokenizer": kind, "name": name, "template": template, "end": end, "rows": rows})
    write("training.json", cases)


if __name__ == "__main__":
    main()
