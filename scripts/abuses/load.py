"""More than there is room for: of the cache, and of the machine."""

import http.client
import json
import re
import threading
import time

from .server import CHAT, Failed, check, refused


def small_cache(server, canary):
    # 16 sequences of up to 450 tokens, in a cache of about 5,800.
    def ask(i):
        body = {"model": "lima", "messages": [{"role": "user", "content": f"Count from {i}."}], "max_tokens": 400,
                "ignore_eos": True, "temperature": 0.7, "seed": i}
        status, answer, _ = server.request("POST", CHAT, body, timeout=600)
        return json.loads(answer)["choices"][0]["message"]["content"] if status == 200 else f"{status}"
    alone = {i: ask(i) for i in (0, 7)}
    before, results = server.metric("vllm:num_preemptions_total"), {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: ask(i)})) for i in range(16)]
    for thread in threads:
        thread.start()
    canary.sing()
    for thread in threads:
        thread.join()
    preempted = server.metric("vllm:num_preemptions_total") - before
    check(all(results[i] == text for i, text in alone.items()), "an answer differs from the one given alone")
    check(not any(re.fullmatch(r"\d{3}", text) for text in results.values()), f"{results}")
    refused(server, "larger than all", {"model": "lima", "messages": [{"role": "user", "content": "word " * 3000}]}, (400,))
    return f"{preempted:g} preemptions, answers the same as alone"


def overload(server, canary, seconds):
    def one(record):
        begun, first = time.monotonic(), None
        body = {"model": "lima", "messages": [{"role": "user", "content": "Tell a story about the number "
                + str(time.monotonic_ns())}], "max_tokens": 16, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        try:
            connection.request("POST", CHAT, json.dumps(body), {"authorization": "Bearer other-key",
                                                                "content-type": "application/json"})
            response = connection.getresponse()
            whole = False
            for line in response:
                first = first or time.monotonic() - begun
                whole = whole or line.startswith(b"data: [DONE]")
            retry = int(response.getheader("retry-after") or 0)
            status = response.status if response.status != 200 or whole else "cut short"
            record.append((begun, status, first, retry))
        except (OSError, http.client.HTTPException) as error:
            record.append((begun, type(error).__name__, None, 0))
        finally:
            connection.close()

    def closed(record, until):
        while time.monotonic() < until:
            one(record)
    # The pool of the cache is reserved, and becomes resident as it is used: all of it now.
    for i in range(6):
        server.chat(messages=[{"role": "user", "content": " ".join(f"{i}{j}" for j in range(400))}], max_tokens=1)
    measured, until = [], time.monotonic() + 8
    threads = [threading.Thread(target=closed, args=(measured, until)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    capacity = sum(status == 200 for _, status, _, _ in measured) / 8
    check(capacity > 0, f"no capacity: {measured[:3]}")
    record, threads, memory = [], [], []
    begun, sent = time.monotonic(), 0
    # The one who does not overload has a key of its own, and is served.
    sings = threading.Event()
    songs, silence = [], []

    def chorus():
        while not sings.is_set():
            try:
                songs.append(canary.sing())
            except Failed as error:
                silence.append(str(error))
            time.sleep(1)
    choir = threading.Thread(target=chorus)
    choir.start()
    while time.monotonic() - begun < seconds:
        due = int((time.monotonic() - begun) * capacity * 10)
        for _ in range(min(due - sent, 200)):
            threads.append(threading.Thread(target=one, args=(record,), daemon=True))
            threads[-1].start()
            sent += 1
        threads = [thread for thread in threads if thread.is_alive()]
        memory.append((time.monotonic() - begun, server.resident()))
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    sings.set()
    choir.join()
    admitted = [(at - begun, first) for at, status, first, _ in record if status == 200]
    others = sorted({str(status) for _, status, _, _ in record} - {"200", "429"})
    check(len(admitted) >= 2, "nothing was answered")
    halves = [first for at, first in admitted if at < seconds / 2], [first for at, first in admitted if at >= seconds / 2]
    p99 = [sorted(times)[int(0.99 * len(times))] if times else float("inf") for times in halves]
    early = max(m for at, m in memory if at < seconds / 4)
    late = max(m for at, m in memory if at >= seconds * 3 / 4)
    limited = [retry for _, status, _, retry in record if status == 429]
    check(not others, f"statuses other than 200 and 429: {others}")
    check(limited and min(limited) >= 1, "429 without a retry-after")
    check(late <= early * 1.05 + 16, f"memory grew from {early:.0f} to {late:.0f} MiB")
    check(p99[1] <= 1.5 * p99[0] + 0.5, f"p99 of the first byte rose from {p99[0]:.2f} to {p99[1]:.2f} s")
    check(not silence, f"{len(silence)} of {len(songs) + len(silence)} canaries failed: {silence[:1]}")
    server.idle(60)
    return (f"{sent} requests in {seconds:g} s, {sent / seconds / capacity:.1f} × the capacity of {capacity:.1f}/s: "
            f"{len(admitted)} answered, {len(limited)} × 429 (retry-after {min(limited)} to {max(limited)} s); first byte "
            f"p99 {p99[0]:.2f} s in the first half, {p99[1]:.2f} s in the second; memory at most {early:.0f} MiB in the "
            f"first quarter, {late:.0f} in the last; {len(songs)} canaries of another key")
