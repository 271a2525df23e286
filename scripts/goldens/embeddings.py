#!/usr/bin/env python3
"""Writes tests/goldens/embeddings.json: pooled last hidden states from Hugging Face transformers in F32.

    embeddings.py [--model FILE.gguf]

For some prompts of each model's other goldens (llama.py makes those first): the mean over all tokens, and the
last token's, of `last_hidden_state`, the hidden states after the final norm; not normalised. The default model's
GGUF file is --model, or downloaded.

Needs: pip install torch transformers accelerate gguf safetensors numpy
"""

import argparse
import json

import torch
import transformers

import llama

SMALL_PROMPTS = 3
DEFAULT_PROMPTS = [0, 7, 15]


@torch.inference_mode()
def pooled(model, prompt):
    states = model.model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
    assert states.dtype == torch.float32 and len(states) == len(prompt)
    mean = states.double().mean(0)
    return {"prompt": prompt, "mean": llama.rounded(mean), "last": llama.rounded(states[-1])}


def prompts(path):
    return [sequence["prompt"] for sequence in json.loads(path.read_text())["sequences"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the default model's GGUF file (default: download it)")
    args = parser.parse_args()
    goldens = {"provenance": llama.provenance(script="scripts/goldens/embeddings.py")}
    for name in llama.SMALL:
        folder = llama.GOLDENS / name
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        # The longest say most.
        longest = sorted(prompts(folder / "goldens.json"), key=len)[-SMALL_PROMPTS:]
        goldens[name] = [pooled(model, prompt) for prompt in longest]
    model, _, _, source = llama.load_default(llama.default_file(args.model))
    goldens["provenance"] |= {key: value for key, value in source.items() if key not in goldens["provenance"]}
    known = prompts(llama.GOLDENS / "default.json")
    goldens["default"] = [pooled(model, known[i]) for i in DEFAULT_PROMPTS]
    llama.write_json(llama.GOLDENS / "embeddings.json", goldens)


if __name__ == "__main__":
    main()
