"""Connections: slow, vanishing, many, forged; and ways around the keys."""

import contextlib
import resource
import socket
import struct
import threading
import time

from .server import CHAT, KEY, check


def slow_senders(server, canary):
    heads = [server.raw() for _ in range(100)]
    slow = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 1000\r\n" \
           "content-type: application/json\r\n\r\n{"
    bodies = [server.raw() for _ in range(100)]
    for raw in bodies:
        raw.sendall(slow.encode())
    until, closed = time.monotonic() + 8, 0
    while time.monotonic() < until:
        for raw in heads + bodies:
            with contextlib.suppress(OSError):
                raw.send(b"G" if raw in heads else b" ")
        canary.sing()
        time.sleep(0.5)
    for raw in heads:
        raw.settimeout(2)
        try:
            closed += raw.recv(100) == b""
        except ConnectionError:
            closed += 1
        except OSError:
            pass
    for raw in heads + bodies:
        raw.close()
    check(closed == 100, f"{closed} of 100 connections with a slow head were closed after 5 s")
    return "100 slow heads closed after 5 s, 100 slow bodies held up nobody"


def slow_readers(server, canary):
    body = {"model": "lima", "messages": [{"role": "user", "content": "Tell a story."}], "stream": True,
            "max_tokens": 300, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    readers = [server.send(body) for _ in range(8)]
    for _ in range(6):
        for raw in readers:
            raw.recv(1)
        canary.sing()
        time.sleep(1)
    for raw in readers:
        raw.close()
    server.idle()
    return "8 readers of a byte a second"


def vanishing(server, canary):
    gone = 0
    for stream in (True, False):
        for moment in (0, 0.02, 0.1, 0.4):
            for how in ("close", "reset", "half"):
                body = {"model": "lima", "messages": [{"role": "user", "content": "word " * 400}], "stream": stream,
                        "max_tokens": 500, "ignore_eos": True, "n": 4}
                raws = [server.send(body) for _ in range(3)]
                time.sleep(moment)
                for raw in raws:
                    if how == "reset":
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if how == "half":
                        raw.shutdown(socket.SHUT_WR)
                        time.sleep(0.02)
                    raw.close()
                    gone += 1
    server.idle()
    return f"{gone} clients gone (closed, reset, half closed) at four moments; all blocks free"


def many_connections(server, canary):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    raws = []
    with contextlib.suppress(OSError):
        while len(raws) < 10_000:
            raws.append(server.raw())
            if len(raws) % 1000 == 0:
                canary.sing()
    canary.sing()
    open_now = server.metric("lima:connections")
    for raw in raws:
        raw.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until = time.monotonic() + 20
    while server.metric("lima:connections") > 5:
        check(time.monotonic() < until, "connections are left")
        time.sleep(0.2)
    return f"{len(raws)} idle connections, {open_now:g} of them kept"


def request_ids(server, canary):
    results, lock = [], threading.Lock()

    def ask():
        status, _, got = server.request("POST", CHAT, {"model": "lima", "messages": [{"role": "user", "content": "x"}],
                                                       "max_tokens": 3}, {"x-request-id": "same"})
        with lock:
            results.append((status, got.get("x-request-id")))
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(results == [(200, "same")] * 8, f"{results}")
    raw = server.raw()
    raw.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-request-id: a\x01b forged=1\r\nconnection: close\r\n\r\n")
    answer = raw.recv(4096)
    check(b"forged" not in answer, f"{answer!r}")
    raw.close()
    return "8 requests of one id answered; an id that could forge a log line is not taken"


def bypasses(server, canary):
    paths = ["/v1/models", "//v1/models", "/v1//models", "/v1/../v1/models", "/v1/%6dodels", "/v1/models/", "/V1/MODELS",
             "/livez/../v1/models", "/livez%2f..%2fv1/models", "/health;/v1/models", "/metrics", "/readyz/x",
             "http://127.0.0.1/v1/models", "/v1/models?x=/livez"]
    tricks = [{}, {"host": "localhost"}, {"x-http-method-override": "GET"}, {"x-forwarded-for": "127.0.0.1"},
              {"x-original-url": "/livez"}, {"authorization": "Bearer " + KEY.upper()}, {"authorization": "Bearer"},
              {"authorization": "Basic " + KEY}, {"x-api-key": KEY[:-1]}]
    for path in paths:
        for trick in tricks:
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                status, _, _ = server.request(method, path, None, trick, key=None)
                check(status in (400, 401), f"{method} {path} {trick}: {status}")
    return f"{len(paths) * len(tricks) * 4} attempts without a key: none let in"


def secrets(server, canary):
    server.chat(messages=[{"role": "user", "content": "a very private prompt"}])
    server.request("POST", CHAT, b'{"private": "prompt"', {"authorization": "Bearer wrong-secret-key"})
    log = server.logged()
    for text in [KEY, "wrong-secret-key", "very private prompt", "Say hello"]:
        check(text not in log, f"{text!r} is in the log")
    check("panicked" not in log, "a panic: " + log[log.find("panicked") - 200:][:400])
    return f"neither keys nor prompts in {len(log) // 1024} KiB of log at level debug; no panic"
