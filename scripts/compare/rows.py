"""The rows of the comparison: what is measured, how by each program, and what is asked of the ratio."""

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import sys
import tempfile

from .shell import ROOT, cargo_artifact, run

FORMATS = "F32 BF16 Q8_0 Q4_0 Q4_1"
K_FORMATS = "Q4_K_M Q5_K_M Q6_K"
KINDS = ["prefill", "decode", "depth", "batch", "http"]
PROMPT, GENERATE = 512, 128
# Few steps, because llama.cpp computes the depth again in each run.
DEPTHS, DEPTH_GENERATE = (4096, 7900), 16
BATCHES, BATCH_PROMPT, BATCH_GENERATE = (16, 32), 128, 64

# Ratios asked for: (at least, aim).
ASKED = {
    "prefill": {"Q4_0": (2.0, 2.9), "Q8_0": (3.2, 4.7), "Q4_1": (6.0, 10.0), "BF16": (1.3, 1.5)},
    "decode": {"Q4_0": (1.35, None), "Q8_0": (1.3, None), "Q4_1": (1.8, None), "BF16": (0.97, None)},
    "depth": {"Q4_0": (2.0, 3.0)},
    "batch": {"Q4_0": (2.0, 3.5), "Q8_0": (2.0, 3.5)},
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row in one format; `size` is a depth or a number of sequences."""

    kind: str
    format: str
    size: int = 0

    @property
    def key(self):
        return f"{self.kind} {self.size} {self.format}"

    @property
    def label(self):
        return {
            "prefill": f"prefill of {PROMPT}, {self.format}",
            "decode": f"decode, {self.format}",
            "depth": f"decode at depth {self.size:,}, {self.format}",
            "batch": f"decode, {self.size} sequences, {self.format}",
        }[self.kind]

    @property
    def asked(self):
        return ASKED[self.kind].get(self.format, (None, None))


def cells(kinds, formats):
    """All cells of these kinds; the deeper and wider ones in the formats that are asked for."""
    wide = [f for f in formats if f in ASKED["batch"]]
    deep = [f for f in formats if f in ASKED["depth"]]
    every = {
        "prefill": [Cell("prefill", f) for f in formats],
        "decode": [Cell("decode", f) for f in formats],
        "depth": [Cell("depth", f, d) for d in DEPTHS for f in deep],
        "batch": [Cell("batch", f, n) for n in BATCHES for f in wide],
    }
    return [cell for kind in kinds if kind in every for cell in every[kind]]


def trials(cell):
    """llama.cpp's flags to try, in groups: each group is tried with the best of the groups before."""
    if cell.kind == "batch":
        return [[["-fa", "on"], ["-fa", "off"]], [[], ["-kvu"]], [[], ["-ub", "128"]]]
    flash = [["-fa", "1"], ["-fa", "0"]]
    if cell.kind == "prefill":
        return [flash, [[], ["-ub", "256"], ["-ub", "128"], ["-b", "512"]]]
    return [flash]


def theirs(tools, path, threads, cell, flags):
    """Tokens per second of one run of llama.cpp. Repacking is on and caches are F16, as by default."""
    flags = ["-m", path, "-t", threads, "-ctk", "f16", "-ctv", "f16", *flags]
    if cell.kind == "batch":
        size = cell.size * (BATCH_PROMPT + BATCH_GENERATE)
        flags += ["-c", size, "-npp", BATCH_PROMPT, "-ntg", BATCH_GENERATE, "-npl", cell.size]
        out = run([tools / "llama-batched-bench", *flags, "--output-format", "jsonl"])
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return lines[-1]["speed_tg"] if lines else sys.exit(f"llama-batched-bench printed no result:\n{out}")
    p, n, d = (PROMPT, 0, 0) if cell.kind == "prefill" else (0, *generate(cell))
    out = run([tools / "llama-bench", *flags, "--repack", 1, "-p", p, "-n", n, "-d", d, "-r", 1, "-o", "json"])
    return json.loads(out)[0]["avg_ts"]


def generate(cell):
    """Decode steps and the depth they begin at."""
    return (DEPTH_GENERATE, cell.size) if cell.kind == "depth" else (GENERATE, 0)


def ours(bench, path, threads, cell):
    """Tokens per second of one run of lima, and its instruction set."""
    p, n, b, d = 0, BATCH_GENERATE, cell.size, BATCH_PROMPT
    if cell.kind == "prefill":
        p, n, b, d = PROMPT, 0, 1, 0
    elif cell.kind != "batch":
        b, (n, d) = 1, generate(cell)
    flags = ["-p", p, "-n", n, "-b", b, "-d", d, "-t", threads, "-r", 1, "--kv", "bf16", "--json"]
    line = json.loads(run([bench, path, *flags]))
    return line["prefill_tokens_per_s" if cell.kind == "prefill" else "decode_tokens_per_s"], line["level"]


@functools.cache
def load_tool():
    return cargo_artifact(["bench", "--no-run", "--bench", "load"], "load")


@functools.cache
def speculation_off():
    """lima's flag that turns speculation off."""
    lima = cargo_artifact(["build", "--release", "--bin", "lima"], "lima")
    flag = "--num-speculative-tokens"
    return f" {flag} 0" if flag in run([lima, "--help"]) else ""


def http(tools, path, threads, rounds, flash):
    """Rows over HTTP by the load tool, which runs both servers in turn: {row: the load tool's ratios}."""
    lima = f"--model '{path}' --threads {threads} --max-num-seqs 16 --kv-cache-dtype bf16{speculation_off()}"
    server = f"{shlex.quote(str(tools / 'llama-server'))} -m {shlex.quote(str(path))} -t {threads} -np 16 -c 32768 -fa {flash} --host 127.0.0.1 --port {{port}}"
    base = [load_tool(), f"--lima={lima}", "--against-command", server, "--names", "lima,llama.cpp", "--no-overhead"]
    chats = ["--concurrency", 16, "--requests", 64, "--input", 128, "--output", 128, "--rounds", rounds]
    turns = ["--concurrency", 1, "--requests", 2, "--turns", 2, "--input", 1500, "--turn-input", 32, "--output", 16]
    results = {}
    for name, flags in (("chats", chats), ("turns", [*turns, "--rounds", rounds])):
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder) / "report.json"
            run([*base, *flags, "--json", report], cwd=ROOT, env=os.environ)
            report = json.loads(report.read_text())
            failed = sum(sum(point["summary"]["failed"].values()) for point in report["points"])
            results[name] = {"failed": failed, "ratios": report["ratios"]}
    return results
