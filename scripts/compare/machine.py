"""Facts about this machine and this checkout."""

import os
import pathlib
import platform
import subprocess

from .shell import ROOT, first_line

FLAGS = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"]


def cpu():
    facts = {}
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    has = set(facts.get("flags", "").split())
    name = facts.get("model name", platform.processor() or "unknown")
    flags = " ".join(f for f in FLAGS if f in has)
    return f"{name}, {os.cpu_count()} logical, cache {facts.get('cache size', 'unknown')}; {flags}"


def memory():
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError):
        return "unknown"


def system():
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def commit():
    name = first_line(["git", "rev-parse", "--short", "HEAD"])
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    try:
        changed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    except OSError:
        changed = ""
    return f"{name} with local changes" if changed.strip() else name


def rustc():
    return first_line(["rustc", "--version"])
