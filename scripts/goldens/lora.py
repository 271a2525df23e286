#!/usr/bin/env python3
"""Writes tests/goldens/lora: small LoRA adapters in PEFT's layout for the tiny random Llamas beside them,
and the log-probabilities that PEFT computes with each.

Needs: pip install torch transformers accelerate safetensors numpy peft
"""

import json
import pathlib
import platform
import shutil
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Name, base, dtype on disk, configuration.
ADAPTERS = [
    ("gqa-qv", "gqa", torch.float32, dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])),
    ("gqa-all", "gqa", torch.bfloat16, dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear")),
    (
        "gqa-patterns",
        "gqa",
        torch.float16,
        dict(
            r=6,
            lora_alpha=9,
            target_modules=["k_proj", "o_proj", "gate_proj", "mlp.down_proj"],
            layers_to_transform=[1],
            rank_pattern={"o_proj": 2, "layers.1.mlp.gate_proj": 17},
            alpha_pattern={"down_proj": 3, "o_proj": 5},
        ),
    ),
    ("mqa-odd-all", "mqa-odd", torch.float32, dict(r=3, lora_alpha=4, target_modules=ALL)),
    ("llama3-mlp", "llama3", torch.float32, dict(r=16, lora_alpha=8, target_modules=["up_proj", "down_proj"])),
]


@torch.inference_mode()
def log_probs(model, tokens):
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    return torch.log_softmax(logits.double(), -1)


def base_model(name):
    return transformers.LlamaForCausalLM.from_pretrained(GOLDENS / name, dtype=torch.float32).eval()


def make(index, name, base, dtype, options):
    """An adapter whose matrices are both random, saved and read back by PEFT."""
    torch.manual_seed(100 + index)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(base_model(base), config)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.15)
    folder = GOLDENS / "lora" / name
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        weights = load_file(f"{saved}/adapter_model.safetensors")
        save_file({k: v.to(dtype).contiguous() for k, v in weights.items()}, f"{saved}/adapter_model.safetensors")
        # The path of the base model on the machine that made it says nothing.
        settings = json.loads(pathlib.Path(saved, "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = base
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
        shutil.copy(f"{saved}/adapter_model.safetensors", folder)
    model = peft.PeftModel.from_pretrained(base_model(base), folder).eval().float()

    vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(index)
    prompts = [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in (1, 9, 21)]
    rows = [log_probs(model, p) for p in prompts]
    base_rows = [log_probs(base_model(base), p) for p in prompts]
    merged = model.merge_and_unload()
    apart = max(float((log_probs(merged, p) - r).abs().max()) for p, r in zip(prompts, rows))
    moved = max(float((p - r).abs().max()) for p, r in zip(base_rows, rows))
    print(f"{name}: merged differs by {apart:.1e}, the base by {moved:.1e}")
    return {
        "name": name,
        "base": base,
        "prompts": prompts,
        "rows": [[[round(float(x), 6) for x in row] for row in r] for r in rows],
    }


def main():
    warnings.filterwarnings("ignore")
    adapters = [make(i, *adapter) for i, adapter in enumerate(ADAPTERS)]
    provenance = {
        "script": "scripts/goldens/lora.py",
        "peft": peft.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
    }
    compact = lambda v: json.dumps(v, separators=(",", ":"))
    text = ",\n".join(map(compact, adapters))
    path = GOLDENS / "lora" / "goldens.json"
    path.write_text(f'{{"provenance":{compact(provenance)},\n"adapters":[\n{text}\n]}}\n')
    print(path.relative_to(GOLDENS.parent.parent), path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
