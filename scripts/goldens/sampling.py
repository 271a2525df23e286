#!/usr/bin/env python3
"""Writes tests/goldens/sampling.json: what transformers' logits processors leave of random rows of logits.

For each case: the logits after those processors that change single tokens (bias, repetition penalty, minimum of new
tokens), and after the warpers (temperature, top-k, top-p, min-p, in the order in which `generate` applies them) the
tokens that are left with their probabilities. All in float32, the last softmax in float64.
"""

import json
import pathlib

import numpy
import torch
import transformers
from transformers.generation import logits_process as lp

VOCAB = 200
OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens/sampling.json"

CASES = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 17},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 0.4},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.3, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 1.3, "top_k": 60, "top_p": 0.7, "repetition_penalty": 1.05},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 3.5, "top_p": 0.8},
    {"logit_bias": [[3, 5.0], [70, -100.0], [131, 2.25]]},
    {"logit_bias": [[9, -3.5], [10, 8.0]], "repetition_penalty": 1.3, "temperature": 0.9, "top_k": 5},
    {"min_tokens": 40, "stop_token_ids": [0, 9, 17]},
    {"min_tokens": 41, "stop_token_ids": [0, 9, 17], "repetition_penalty": 1.1, "top_p": 0.95},
    {"min_tokens": 12, "stop_token_ids": [0, 9, 17], "temperature": 0.8, "min_p": 0.1},
]


def finite(row: torch.Tensor) -> list:
    """float32 in as few digits as tell it from its neighbours; -inf is null."""
    return [None if x == -float("inf") else float(str(x)) for x in row.numpy().astype(numpy.float32)]


def case(index: int, params: dict) -> dict:
    torch.manual_seed(1000 + index)
    spread = [1.0, 3.0, 8.0][index % 3]
    logits = (torch.randn(1, VOCAB) * spread).to(torch.float32)
    if index % 4 == 3:
        logits[0, torch.randperm(VOCAB)[:30]] = -float("inf")
    history = torch.randint(0, VOCAB, (1, 57))
    history[0, 20:26] = history[0, 3]  # repeated: the penalty counts a token once
    num_prompt = 17

    processors = lp.LogitsProcessorList()
    if bias := params.get("logit_bias"):
        processors.append(lp.SequenceBiasLogitsProcessor([[[t], b] for t, b in bias]))
    if (penalty := params.get("repetition_penalty")) is not None:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(penalty))
    if least := params.get("min_tokens"):
        stop = params["stop_token_ids"]
        processors.append(lp.MinNewTokensLengthLogitsProcessor(num_prompt, least, stop))
    warpers = lp.LogitsProcessorList()
    if (temperature := params.get("temperature")) is not None:
        warpers.append(lp.TemperatureLogitsWarper(temperature))
    if k := params.get("top_k"):
        warpers.append(lp.TopKLogitsWarper(k))
    if (p := params.get("top_p")) is not None:
        warpers.append(lp.TopPLogitsWarper(p))
    if (p := params.get("min_p")) is not None:
        warpers.append(lp.MinPLogitsWarper(p))

    edited = processors(history, logits.clone())
    left = warpers(history, edited.clone())[0].to(torch.float64)
    probabilities = torch.softmax(left, 0)
    kept = torch.nonzero(left > -float("inf"))[:, 0]
    return {
        "params": params,
        "history": history[0].tolist(),
        "num_prompt": num_prompt,
        "logits": finite(logits[0]),
        "edited": finite(edited[0]),
        "kept": [[int(i), float(f"{float(probabilities[i]):.10g}")] for i in kept],
    }


def main() -> None:
    cases = [case(i, params) for i, params in enumerate(CASES)]
    provenance = {
        "written_by": "scripts/goldens/sampling.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seed": "1000 + index of the case",
    }
    rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    OUT.write_text(f'{{"provenance":{json.dumps(provenance)},\n"vocab":{VOCAB},\n"cases":[\n{rows}\n]}}\n')
    print(f"{OUT}: {len(cases)} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
