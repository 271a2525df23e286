#!/usr/bin/env python3
"""Makes tests/goldens/adamw.json: twelve steps of PyTorch's AdamW with LIMA's constants, of a matrix and a norm.

    .venv/bin/pip install torch
    .venv/bin/python scripts/goldens/adamw.py

The learning rate goes from 1e-2 to 1e-3 in a straight line; the norm has no weight decay.
"""

import json
import pathlib

import torch

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens/adamw.json"
STEPS = 12


def main():
    torch.manual_seed(1)
    tensors = {
        "matrix": torch.nn.Parameter(torch.randn(4, 6)),
        "norm": torch.nn.Parameter(1 + 0.1 * torch.randn(6)),
    }
    groups = [{"params": [tensors["matrix"]], "weight_decay": 0.1}, {"params": [tensors["norm"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    numbers = lambda t: [float(v) for v in t.detach().flatten()]
    traces = {
        name: {"shape": list(t.shape), "weights": numbers(t), "gradients": [], "after": []} for name, t in tensors.items()
    }
    lrs = [1e-2 - 9e-3 * step / (STEPS - 1) for step in range(STEPS)]
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, t in tensors.items():
            # Gradients of very different size, and none at all, for some weights.
            t.grad = torch.randn(t.shape) * 10.0 ** torch.randint(-6, 3, t.shape)
            t.grad.view(-1)[0] = 0.0
            if step % 3 == 0:
                t.grad.view(-1)[1] = 0.0
            traces[name]["gradients"].append(numbers(t.grad))
        optimizer.step()
        for name, t in tensors.items():
            traces[name]["after"].append(numbers(t))
    OUT.write_text(json.dumps(traces | {"lrs": lrs, "provenance": {"torch": torch.__version__, "seed": 1}}) + "\n")


if __name__ == "__main__":
    main()
