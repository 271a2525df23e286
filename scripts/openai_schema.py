"""Validates a running server's answers against OpenAI's published API description.

    pip install jsonschema
    python scripts/openai_schema.py SPEC [BASE_URL]

SPEC is the description as JSON, or that gzipped; BASE_URL is http://127.0.0.1:8000/v1 unless given. Exits
non-zero at the first answer that its schema does not accept.
"""

import gzip
import json
import sys
import urllib.error
import urllib.request

import jsonschema


def load(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def accept_null(schema):
    """The description still says `nullable: true`, which JSON Schema does not know: makes it a `null` type."""
    if isinstance(schema, list):
        return [accept_null(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: accept_null(value) for key, value in schema.items()}
    return {"anyOf": [schema, {"type": "null"}]} if schema.pop("nullable", False) is True else schema


class Checker:
    def __init__(self, spec, base):
        self.spec, self.base, self.checked = {"components": accept_null(spec["components"])}, base, 0

    def check(self, schema, value):
        root = {"$ref": f"#/components/schemas/{schema}", "components": self.spec["components"]}
        errors = sorted(jsonschema.Draft202012Validator(root).iter_errors(value), key=lambda e: len(e.path))
        if errors:
            where = "/".join(map(str, errors[0].absolute_path))
            sys.exit(f"{schema}: at /{where}: {errors[0].message}\n{json.dumps(value, indent=1)}")
        self.checked += 1

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def chat(self, **fields):
        body = {"model": self.model, "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
        status, text = self.call("/chat/completions", body | fields)
        assert status == 200, text
        if not fields.get("stream"):
            self.check("CreateChatCompletionResponse", json.loads(text))
            return
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert events[-1] == "[DONE]", events[-1]
        for event in events[:-1]:
            self.check("CreateChatCompletionStreamResponse", json.loads(event))

    def completion(self, **fields):
        status, text = self.call("/completions", {"model": self.model, "prompt": "A colour:", "max_tokens": 8} | fields)
        assert status == 200, text
        events = [text, "[DONE]"]
        if fields.get("stream"):
            events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert events[-1] == "[DONE]", events[-1]
        answers = [json.loads(event) for event in events[:-1]]
        for answer in answers:
            for choice in answer["choices"]:
                # What the description does not know: the first token of an echoed prompt has no probability, and a
                # chunk in the middle of a stream no reason to end.
                for name in ("token_logprobs", "top_logprobs"):
                    if fields.get("echo") and choice["logprobs"] and choice["logprobs"]["text_offset"][0] == 0:
                        assert choice["logprobs"][name].pop(0) is None, choice
                if fields.get("stream"):
                    choice["finish_reason"] = choice["finish_reason"] or "stop"
            if fields.get("stream") and answer.get("usage", 0) is None:
                del answer["usage"]
            self.check("CreateCompletionResponse", answer)

    def response(self, **fields):
        body = {"model": self.model, "input": "Name a colour.", "max_output_tokens": 8}
        status, text = self.call("/responses", body | fields)
        assert status == 200, text
        if not fields.get("stream"):
            self.check("Response", json.loads(text))
            return
        events = [event.split("\n") for event in text.strip().split("\n\n") if not event.startswith(":")]
        for number, (name, data) in enumerate(events):
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}" and event["sequence_number"] == number, event
            self.check("ResponseStreamEvent", event)
        assert name in ("event: response.completed", "event: response.incomplete"), name

    def run(self):
        status, text = self.call("/models")
        assert status == 200, text
        models = json.loads(text)
        self.check("ListModelsResponse", models)
        self.model = models["data"][0]["id"]
        status, text = self.call(f"/models/{self.model}")
        self.check("Model", json.loads(text))
        variants = [
            {},
            {"n": 2, "seed": 7, "temperature": 1.0},
            {"logprobs": True, "top_logprobs": 3},
            {"logprobs": True},
            {"stop": ["\n", "."]},
            {"max_tokens": 64, "temperature": 0},
        ]
        for fields in variants:
            self.chat(**fields)
            self.chat(stream=True, **fields)
            self.chat(stream=True, stream_options={"include_usage": True}, **fields)
        for fields in [
            {},
            {"prompt": ["One", "Two"], "n": 2, "seed": 7},
            {"prompt": [[1, 2, 3]], "logprobs": 0},
            {"logprobs": 3, "stop": "\n"},
            {"echo": True, "logprobs": 1, "max_tokens": 1},
            {"echo": True},
        ]:
            self.completion(**fields)
            self.completion(stream=True, **fields)
            self.completion(stream=True, stream_options={"include_usage": True}, **fields)
        self.completion(best_of=3)
        for fields in [{"input": "text"}, {"input": ["one", "two"]}, {"input": [1, 2]}, {"input": [[1], [2, 3]]}]:
            status, text = self.call("/embeddings", {"model": self.model} | fields)
            assert status == 200, text
            self.check("CreateEmbeddingResponse", json.loads(text))
        items = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
        items.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Three"}]})
        call = {"type": "function", "name": "add", "parameters": {"type": "object"}}
        for fields in [
            {},
            {"instructions": "You are brief.", "metadata": {"k": "v"}, "user": "u", "safety_identifier": "s"},
            {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
            {"input": items, "max_output_tokens": 64, "temperature": 0, "top_p": 0.9},
            {"tools": [call], "tool_choice": "required", "max_output_tokens": 48},
            {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 48},
        ]:
            self.response(**fields)
            self.response(stream=True, **fields)
        for status_wanted, path, body in [
            (400, "/responses", {"model": self.model, "input": "a", "store": True}),
            (404, "/models/none", None),
            (404, "/nowhere", None),
            (405, "/chat/completions", None),
            (400, "/chat/completions", {"model": self.model, "messages": []}),
            (400, "/completions", {"model": self.model, "prompt": []}),
            (400, "/embeddings", {"model": self.model, "input": "a", "dimensions": 3}),
            (400, "/chat/completions", {"model": self.model, "messages": [{"role": "user", "content": 1}]}),
        ]:
            status, text = self.call(path, body)
            assert status == status_wanted, f"{path}: {status} {text}"
            self.check("ErrorResponse", json.loads(text))
        print(f"{self.checked} answers and chunks are as the description says")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    Checker(load(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "http://127.0.0.1:8000/v1").run()
