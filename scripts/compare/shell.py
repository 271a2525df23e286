"""Running other programs."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def say(text):
    print(text, file=sys.stderr, flush=True)


def cache_folder():
    """lima's cache folder."""
    if os.environ.get("LIMA_CACHE"):
        return pathlib.Path(os.environ["LIMA_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lima"


def run(command, both=False, **options):
    """Standard output of a command (with `both`, standard error too, which otherwise is shown only if it fails)."""
    command = [str(c) for c in command]
    streams = {"stderr": subprocess.STDOUT if both else subprocess.PIPE}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **streams, **options)
    except OSError as error:
        sys.exit(f"{command[0]}: {error}")
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout if both else done.stderr}")
    return done.stdout


def first_line(command):
    """The first line a command prints; "unknown" if it cannot be had."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        return done.stdout.splitlines()[0] if done.returncode == 0 else "unknown"
    except (OSError, IndexError):
        return "unknown"


def cargo_artifact(arguments, target, kind=None):
    """Builds with cargo and returns the executable of a target (of a kind, where several have the name)."""
    say(f"building {target}")
    out = run(["cargo", *arguments, "--message-format=json"], cwd=ROOT)
    found = None
    for message in map(json.loads, out.splitlines()):
        made = message.get("target", {})
        if made.get("name") == target and (kind is None or kind in made["kind"]) and message.get("executable"):
            found = message["executable"]
    return found or sys.exit(f"cargo built no {target}")
