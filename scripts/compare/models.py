"""The files both programs read."""

import os
import pathlib
import sys
import venv

from .shell import ROOT, cache_folder, run, say

RANDOM = "random-1b"


def default_model():
    out = run(["cargo", "run", "--quiet", "--release", "--bin", "lima", "--", "pull"], cwd=ROOT)
    return pathlib.Path(out.strip().splitlines()[-1])


def random_model():
    """A random LLaMA of TinyLlama's shape in BF16, made once; with numpy and gguf from the package index."""
    folder = cache_folder() / "requantized"
    path = folder / f"{RANDOM}.BF16.gguf"
    if path.exists():
        return path
    environment = cache_folder() / "random-model-venv"
    python = environment / "bin/python"
    if os.environ.get("LIMA_TEST_PYTHON"):
        python = pathlib.Path(os.environ["LIMA_TEST_PYTHON"])
    elif not (environment / "complete").exists():
        venv.create(environment, with_pip=True)
        run([environment / "bin/pip", "--disable-pip-version-check", "install", "--quiet", "numpy", "gguf"])
        (environment / "complete").touch()
    say(f"making {path}")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{RANDOM}.{os.getpid()}.part.gguf"
    try:
        # Long enough for the deepest row.
        run([python, ROOT / "scripts/random-model", part, "--context", 8192])
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def find(name):
    """The model of `--model`: the random one by its name, a file, or lima's default."""
    if name is None:
        return default_model().resolve()
    if name == RANDOM:
        return random_model()
    path = pathlib.Path(name).resolve()
    return path if path.is_file() else sys.exit(f"--model: {path} is no file")


def requantized(tools, model, name):
    """The model in a format: the file itself where its name says so, else made by llama-quantize, once."""
    parts = model.name.split(".")
    if name.lower() in (part.lower() for part in parts):
        return model
    stem = ".".join(parts[:-2] if len(parts) > 2 else parts[:-1])
    folder = cache_folder() / "requantized"
    path = folder / f"{stem}-{model.stat().st_size}.{name}.gguf"
    if not path.exists():
        say(f"making {path}")
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            run([tools / "llama-quantize", "--allow-requantize", model, part, name])
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
    return path
