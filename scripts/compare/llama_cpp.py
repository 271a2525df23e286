"""llama.cpp's programs: those of LIMA_LLAMA_CPP, else built once from llama-cpp-python's source package."""

import os
import pathlib
import sys
import tarfile
import venv

from .shell import cache_folder, run, say

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
TOOLS = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-server", "llama-perplexity"]
# The browser interface and TLS would need the network or more libraries; neither touches speed.
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_UI=OFF",
]  # fmt: skip


def version():
    """How reports name it. A build from the package knows no version of its own."""
    return "the build LIMA_LLAMA_CPP names" if os.environ.get("LIMA_LLAMA_CPP") else f"{PACKAGE} {VERSION}"


def tools(needed):
    """The folder of the programs, all of `needed` among them."""
    named = os.environ.get("LIMA_LLAMA_CPP")
    folder = pathlib.Path(named).resolve() if named else build()
    for tool in needed:
        if not os.access(folder / tool, os.X_OK):
            sys.exit(f"{'LIMA_LLAMA_CPP: ' if named else ''}there is no {tool} in {folder}")
    return folder


def build():
    root = cache_folder() / f"llama.cpp-{VERSION}"
    done = root / "complete"
    if done.exists():
        return root / "build/bin"
    say(f"building llama.cpp of {PACKAGE} {VERSION} in {root}: about 10 minutes on two cores")
    root.mkdir(parents=True, exist_ok=True)
    venv.create(root / "venv", with_pip=True)
    bin = root / "venv/bin"
    pip = [bin / "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "scikit-build-core", "cmake", "ninja"])
    # Without isolation, because the package's metadata are made by what was just installed.
    run([*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", root,
         f"{PACKAGE}=={VERSION}"])  # fmt: skip
    with tarfile.open(root / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz") as archive:
        archive.extractall(root, filter="data")
    source = root / f"{PACKAGE.replace('-', '_')}-{VERSION}" / "vendor/llama.cpp"
    environment = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    run(["cmake", "-S", source, "-B", root / "build", "-G", "Ninja", *OPTIONS], env=environment)
    run(["cmake", "--build", root / "build", "--target", *TOOLS], env=environment)
    done.touch()
    return root / "build/bin"
