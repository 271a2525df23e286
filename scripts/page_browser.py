"""Chromium over its DevTools pipe, a tab of it, and the servers it is shown; for scripts/page-test."""

import base64
import json
import os
import pathlib
import queue
import subprocess
import tempfile
import threading
import time

PATIENCE = 120  # seconds that anything may take


class Failure(Exception):
    pass


class Browser:
    """Chromium, spoken to over its DevTools pipe: JSON between zero bytes on descriptors 3 and 4."""

    def __init__(self, program, profile):
        down, self.out = os.pipe()
        self.into, up = os.pipe()

        def attach():
            # Above 4 first, so that neither copy closes the other's source.
            spare = (os.dup2(down, 100), os.dup2(up, 101))
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        arguments = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
                     "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--no-proxy-server", "--force-color-profile=srgb", "about:blank"]
        self.process = subprocess.Popen([program, *arguments], preexec_fn=attach, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(down)
        os.close(up)
        self.number = 0
        self.answers = {}
        self.came = threading.Condition()
        self.events = queue.Queue()
        self.handlers = {}
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        rest = b""
        while data := os.read(self.into, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    with self.came:
                        self.answers[message["id"]] = message
                        self.came.notify_all()
                else:
                    self.events.put(message)
        with self.came:
            self.answers[None] = True
            self.came.notify_all()

    def send(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.number

    def call(self, method, session=None, **params):
        number = self.send(method, session, **params)
        end = time.monotonic() + PATIENCE
        with self.came:
            while number not in self.answers:
                if None in self.answers:
                    raise Failure("the browser ended")
                if not self.came.wait(end - time.monotonic()):
                    raise Failure(f"no answer to {method}")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise Failure(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (Failure, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


class Page:
    """One tab, in a context of its own: nothing is kept from another."""

    def __init__(self, browser, url, width=1280, height=800, scheme="light", first=None):
        self.browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.complaints = []
        self.stubs = []
        self.sent = []
        browser.handlers[self.session] = self.on
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        if first:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=first)
        self.url = url
        self.go()

    def call(self, method, **params):
        result = self.browser.call(method, self.session, **params)
        self.drain()
        return result

    def drain(self):
        while not self.browser.events.empty():
            event = self.browser.events.get()
            handler = self.browser.handlers.get(event.get("sessionId"))
            if handler:
                handler(event["method"], event["params"])

    def on(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["source"] in ("security", "javascript"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Fetch.requestPaused":
            request = params["request"]
            self.sent.append(json.loads(request.get("postData", "null")))
            if not self.stubs:
                self.browser.send("Fetch.continueRequest", self.session, requestId=params["requestId"])
                return
            status, headers, body = self.stubs.pop(0)
            self.browser.send("Fetch.fulfillRequest", self.session, requestId=params["requestId"], responseCode=status,
                              responseHeaders=[{"name": k, "value": v} for k, v in headers.items()],
                              body=base64.b64encode(body.encode()).decode())

    def go(self):
        self.call("Page.navigate", url=self.url)
        self.until("the page is there", "document.readyState === 'complete'")

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise Failure(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    def until(self, what, expression):
        end = time.monotonic() + PATIENCE
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            if time.monotonic() > end:
                self.picture(pathlib.Path(tempfile.gettempdir()) / "page-test-failure.png")
                raise Failure(f"it never came to this: {what}; complaints: {self.complaints}")
            time.sleep(0.03)

    def key(self, name, text=None, modifiers=0):
        more = {"text": text} if text else {}
        code = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "Tab": 9}.get(name, 0)
        down = dict(key=name, code=name, windowsVirtualKeyCode=code, modifiers=modifiers)
        self.call("Input.dispatchKeyEvent", type="keyDown", **down, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **down)

    def enter(self):
        self.key("Enter", "\r")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        spot = self.evaluate(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)

    def say(self, text):
        self.evaluate("document.getElementById('input').focus()")
        self.type(text)
        self.enter()

    def answered(self):
        self.until("an answer", "document.getElementById('stop').hidden && "
                                "document.querySelectorAll('.turn.assistant').length > 0")

    def texts(self, selector):
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def stub(self, *answers):
        """Answers the next requests for chats with these; after them, the server does."""
        self.stubs = list(answers)
        self.sent = []
        self.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Server:
    def __init__(self, lima, model, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIMA_") or k == "LIMA_CACHE"}
        model = ["--model", model] if model else []
        self.process = subprocess.Popen(
            [lima, *model, "--port", "0", "--served-model-name", "smollm2-135m-instruct", "--kv-cache-memory", "256MiB",
             "--seed", "1", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise Failure(f"the server said {line!r}")
        self.url = line.removeprefix("listening on ").strip() + "/"

    def close(self):
        self.process.kill()
        self.process.wait()


def stream(*pieces, usage=None):
    """The body of a streamed answer."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": usage or {"prompt_tokens": 64, "completion_tokens": len(pieces),
                                                      "prompt_tokens_details": {"cached_tokens": 32}}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return 200, {"content-type": "text/event-stream"}, body


def refusal(status, code, message, **headers):
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})
    return status, {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, body


def check(condition, what):
    if not condition:
        raise Failure(what)
    print(f"ok: {what}", flush=True)
