#!/usr/bin/env python3
"""Makes tests/goldens/training_numerics: what PyTorch computes in training the tiny Llama of tests/goldens/gqa.

    .venv/bin/pip install torch transformers safetensors
    .venv/bin/python scripts/goldens/training_numerics.py     # after llama.py small

`numerics.json` has the examples, the logits of the first of them, the loss (the mean over supervised tokens of all examples
together) and the losses of ten steps with AdamW, matrices decayed and norms not. `gradients.safetensors` has the gradients
of that loss. F32 throughout, eager attention, without dropout.
"""

import json
import pathlib
import platform

import numpy
import torch
import transformers
from safetensors.torch import save_file

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"
OUT = GOLDENS / "training_numerics"
# Tokens of each example, and which of them are the assistant's.
SHAPES = [(19, [(6, 19)]), (7, [(3, 7)]), (33, [(4, 12), (20, 33)]), (12, [(11, 12)])]
STEPS = 10
OPTIMIZER = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
# Larger than the recipe's, so that ten steps of a random model are seen.
LEARNING_RATES = [3e-3 + (3e-4 - 3e-3) * step / (STEPS - 1) for step in range(STEPS)]


def load():
    return transformers.AutoModelForCausalLM.from_pretrained(
        GOLDENS / "gqa", dtype=torch.float32, attn_implementation="eager"
    ).train()


def examples(vocab):
    draw = numpy.random.default_rng(5)
    rows = []
    for length, turns in SHAPES:
        supervised = [any(a <= i < b for a, b in turns) for i in range(length)]
        rows.append({"ids": [int(t) for t in draw.integers(0, vocab, length)], "supervised": supervised})
    return rows


def loss_of(model, rows):
    total, count = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([row["ids"]]), use_cache=False).logits[0, :-1]
        targets = torch.tensor(row["ids"][1:])
        chosen = torch.tensor(row["supervised"][1:])
        total = total + torch.nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="sum")
        count += int(chosen.sum())
    return total / count


def main():
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    model = load()
    rows = examples(model.config.vocab_size)
    loss = loss_of(model, rows)
    loss.backward()
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        logits = model(torch.tensor([rows[0]["ids"]]), use_cache=False).logits[0]

    model = load()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}], lr=0.0, **OPTIMIZER
    )
    losses = []
    for lr in LEARNING_RATES:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        step = loss_of(model, rows)
        step.backward()
        optimizer.step()
        losses.append(step.item())
    assert losses[-1] < losses[0], "the model learns"

    save_file(gradients, OUT / "gradients.safetensors")
    golden = {
        "provenance": {
            "script": "scripts/goldens/training_numerics.py",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "model": "gqa",
        "optimizer": {**OPTIMIZER, "learning_rates": LEARNING_RATES},
        "loss": loss.item(),
        "losses": losses,
        "examples": rows,
        "logits": [[round(float(v), 6) for v in row] for row in logits],
    }
    text = ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in golden.items())
    (OUT / "numerics.json").write_text("{" + text + "}\n")
    for path in sorted(OUT.iterdir()):
        print(path.relative_to(GOLDENS.parent.parent), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
