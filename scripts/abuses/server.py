"""The server under abuse, the canary that must be answered, and what an answer must be."""

import http.client
import json
import os
import pathlib
import re
import socket
import subprocess
import time

KEY = "abuse-secret-key"
CANARY_SECONDS = 10
CHAT = "/v1/chat/completions"
FLAGS = ["--served-model-name", "lima", "--max-num-seqs", "16", "--max-queued-requests", "32", "--max-model-len",
         "2048", "--kv-cache-memory", "128MiB", "--idle-timeout", "5", "--drain-timeout", "20"]


class Failed(Exception):
    """A case went wrong; the text says how."""


def check(condition, text):
    if not condition:
        raise Failed(text)


class Server:
    def __init__(self, options, folder, extra=(), port=0):
        keys = pathlib.Path(folder, "keys")
        keys.write_text(f"{KEY} name=abuse\nother-key name=other\n")
        self.log = open(pathlib.Path(folder, f"log-{time.monotonic_ns()}"), "w+")
        command = [options.binary, "--port", str(port), "--api-key-file", str(keys), *FLAGS, *extra, *options.flags]
        environment = {**os.environ, "LIMA_LOG": "debug"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        line = self.process.stdout.readline()
        check(line, "the server did not start: " + self.logged()[-300:])
        self.port = int(line.strip().rsplit(":", 1)[1])
        while self.request("GET", "/readyz")[0] != 200:
            check(self.process.poll() is None, "the server ended: " + self.logged()[-300:])
            time.sleep(0.1)

    def logged(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def request(self, method, path, body=None, headers=None, key=KEY, timeout=120):
        """Status, body and headers; status 0 if the connection was closed instead."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        send = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = json.dumps(body) if isinstance(body, (dict, list)) else body
        send.update(headers or {})
        try:
            connection.request(method, path, data, send, encode_chunked="transfer-encoding" in send)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        except (OSError, http.client.HTTPException):
            return 0, b"", {}
        finally:
            connection.close()

    def chat(self, timeout=120, **fields):
        body = {"model": "lima", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, **fields}
        return self.request("POST", CHAT, body, timeout=timeout)

    def raw(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, body, path=CHAT):
        """A socket on which a request was sent."""
        data = json.dumps(body).encode()
        head = (f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(data)}\r\n\r\n")
        raw = self.raw()
        raw.sendall(head.encode() + data)
        return raw

    def metric(self, name):
        """The sum of a metric's series."""
        text = self.request("GET", "/metrics")[1].decode()
        lines = [line for line in text.splitlines() if re.match(re.escape(name) + r"[{ ]", line)]
        check(lines, f"no metric {name}")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def idle(self, seconds=20):
        """Waits until nothing runs, waits or holds blocks."""
        names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
        until = time.monotonic() + seconds
        while any(self.metric(name) for name in names):
            check(time.monotonic() < until, "sequences or blocks are left: "
                  + ", ".join(f"{name} {self.metric(name):g}" for name in names))
            time.sleep(0.1)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


class Canary:
    def __init__(self, server):
        self.server, self.expected = server, None
        self.expected = self.sing()

    def sing(self):
        begun = time.monotonic()
        status, body, _ = self.server.chat(temperature=0, max_tokens=6)
        check(status == 200, f"the canary got {status} {body[:200]!r}")
        text = json.loads(body)["choices"][0]["message"]["content"]
        check(self.expected in (None, text), f"the canary got {text!r} instead of {self.expected!r}")
        check(time.monotonic() - begun < CANARY_SECONDS, f"the canary waited {time.monotonic() - begun:.1f} s")
        return text


def error_of(body):
    error = json.loads(body)["error"]
    check(sorted(error) == ["code", "message", "param", "type"], f"not the shape of an error: {body[:200]!r}")
    return error["code"]


def refused(server, name, body, statuses, headers=None, path=CHAT):
    status, answer, _ = server.request("POST", path, body, headers)
    check(status in statuses, f"{name}: {status} {answer[:120]!r}")
    if status:
        error_of(answer)


def fields(server, cases, statuses=(400,)):
    for name, value in cases:
        body = {"model": "lima", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, name: value}
        refused(server, f"{name}={str(value)[:40]}", body, statuses)
    return f"{len(cases)} refused"
