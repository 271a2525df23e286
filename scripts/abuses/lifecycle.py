"""The server's beginning and end."""

import pathlib
import signal
import subprocess
import time

from .server import Server, check


def lifecycle(options, folder):
    def begin():
        server = Server(options, folder)
        body = {"model": "lima", "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 60,
                "ignore_eos": True, "stream": True}
        raws = [server.send(body) for _ in range(6)]
        for raw in raws:
            raw.recv(1)
        return server, raws
    server = Server(options, folder)
    server.process.terminate()
    check(server.process.wait(10) == 0, "SIGTERM, idle: not status 0")
    server.stop()

    server, raws = begin()
    server.process.terminate()
    time.sleep(0.2)
    check(server.request("GET", "/readyz")[0] == 503, "not 503 while draining")
    check(server.chat()[0] == 503, "a new request is taken while draining")
    whole = [b"".join(iter(lambda: raw.recv(65536), b"")).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for raw in raws]
    check(all(whole), f"{whole.count(False)} streams were cut short")
    check(server.process.wait(30) == 0, "SIGTERM, loaded: not status 0")
    server.stop()

    server, raws = begin()
    server.process.terminate()
    time.sleep(0.2)
    server.process.terminate()
    check(server.process.wait(10) == 130, "a second SIGTERM does not end it")
    server.stop()

    server, raws = begin()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    again = Server(options, folder, port=server.port)
    check(again.chat()[0] == 200, "no answer after SIGKILL and a restart on the same port")
    taken = subprocess.run([options.binary, "--port", str(again.port), *options.flags], capture_output=True, text=True)
    check(taken.returncode == 1 and "cannot listen" in taken.stderr, f"port in use: {taken.stderr[-200:]}")
    again.stop()
    server.stop()

    broken = pathlib.Path(folder, "broken.gguf")
    broken.write_bytes(b"GGUF" + b"\xff" * 1000)
    result = subprocess.run([options.binary, "--port", "0", "--model", str(broken)], capture_output=True, text=True)
    check(result.returncode == 1 and "broken.gguf" in result.stderr, f"a broken model: {result.stderr[-200:]}")
    return "SIGTERM idle, loaded and twice; SIGKILL and restart on the port; port in use; broken model"
