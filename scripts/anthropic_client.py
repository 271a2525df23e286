"""Talks to a running server with the official `anthropic` client, and checks what it says.

    pip install anthropic
    python scripts/anthropic_client.py [BASE_URL [MODEL]]

BASE_URL is http://127.0.0.1:8000 unless given (with or without /v1), MODEL the name the server has by default. Prints
a transcript; exits non-zero if anything is not as the client expects it.
"""

import asyncio
import json
import sys
import urllib.request

import anthropic

ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
# What the client has no parameters for.
GREEDY = {"extra_body": {"temperature": 0, "repetition_penalty": 1.2}}


def heading(title):
    print(f"\n== {title}")


def say(role, text):
    print(f"{role:>9}: {text.strip()}")


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def user(content):
    return {"role": "user", "content": content}


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def plain(client, model):
    heading("not streaming, then streaming")
    question = "What is the capital of France? Answer in one sentence."
    ask = {"model": model, "max_tokens": 48, "system": "You are brief.", "messages": [user(question)]}
    whole = client.messages.create(**ask, **GREEDY)
    say("user", question)
    say("assistant", text_of(whole))
    usage = whole.usage
    print(f"           {usage.input_tokens} tokens in, {usage.cache_read_input_tokens} cached, {usage.output_tokens} out")
    check(whole.stop_reason in ("end_turn", "max_tokens") and text_of(whole).strip(), whole)
    with client.messages.stream(**ask, **GREEDY) as stream:
        parts = list(stream.text_stream)
        final = stream.get_final_message()
    check("".join(parts) == text_of(whole) == text_of(final), "the stream differs from the message in one piece")
    check((final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, usage.output_tokens), final.usage)
    print(f"           {len(parts)} pieces, {final.stop_reason}")
    turns = [user(question), {"role": "assistant", "content": text_of(whole)}, user("And of Italy?")]
    say("assistant", text_of(client.messages.create(model=model, max_tokens=32, messages=turns, **GREEDY)))


def stops(client, model):
    heading("stop sequences and counting")
    ask = {"model": model, "max_tokens": 64, "messages": [user("Count: one, two, three,")]}
    message = client.messages.create(**ask, stop_sequences=[","], **GREEDY)
    print(f"           {message.stop_reason} {message.stop_sequence!r}: {text_of(message)!r}")
    check("," not in text_of(message), "a stop sequence is not shown")
    check((message.stop_reason == "stop_sequence") == (message.stop_sequence == ","), message)
    counted = client.messages.count_tokens(model=model, messages=[user("Hello")]).input_tokens
    first = client.messages.create(model=model, max_tokens=1, messages=[user("Hello")])
    check(first.stop_reason == "max_tokens", first.stop_reason)
    check(counted == first.usage.input_tokens + first.usage.cache_read_input_tokens, (counted, first.usage))
    print(f"           {counted} tokens")


def tools(client, model):
    heading("a tool is called, and its result goes back")
    ask = {"model": model, "max_tokens": 96, "tools": [ADD]}
    messages = [user("What is 2 and 3?")]
    chosen = {"tool_choice": {"type": "tool", "name": "add"}}
    whole = client.messages.create(messages=messages, **ask, **chosen, **GREEDY)
    use = whole.content[-1]
    check(use.type == "tool_use" and use.name == "add", whole.content)
    print(f"           {use.name}({json.dumps(use.input)}), {whole.stop_reason}")
    check(whole.stop_reason == "max_tokens" or set(use.input) == {"a", "b"}, use.input)
    with client.messages.stream(messages=messages, **ask, **chosen, **GREEDY) as stream:
        final = stream.get_final_message()
    check(final.content[-1].name == "add" and final.stop_reason == whole.stop_reason, final.content)
    check(final.stop_reason == "max_tokens" or final.content[-1].input == use.input, final.content)
    messages.append({"role": "assistant", "content": [{"type": "tool_use", "id": use.id, "name": "add", "input": use.input}]})
    messages.append(user([{"type": "tool_result", "tool_use_id": use.id, "content": "5"}]))
    say("assistant", text_of(client.messages.create(messages=messages, **ask, tool_choice={"type": "none"}, **GREEDY)))


async def many(base_url, model):
    heading("async: two at once")
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="none", max_retries=0) as client:
        ask = lambda n: client.messages.create(model=model, max_tokens=12, messages=[user(f"Say {n}.")])
        for message in await asyncio.gather(ask(3), ask(5)):
            say("assistant", text_of(message))


def errors(client, model):
    heading("errors")
    for kind, status, arguments in [
        (anthropic.BadRequestError, 400, {"model": model, "max_tokens": 0}),
        (anthropic.BadRequestError, 400, {"model": model, "extra_body": {"thinking": {"type": "adaptive"}}}),
        (anthropic.NotFoundError, 404, {"model": "no-such-model"}),
    ]:
        try:
            client.messages.create(**({"max_tokens": 8, "messages": [user("Hello")]} | arguments))
        except kind as error:
            check(error.status_code == status and error.body["type"] == "error", error)
            check(error.request_id, "the error has a request id")
            print(f"           {type(error).__name__}: {error.body['error']['message']}")
        else:
            raise AssertionError(f"{arguments} was accepted")


def main():
    base_url = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").removesuffix("/").removesuffix("/v1")
    if len(sys.argv) > 2:
        model = sys.argv[2]
    else:
        with urllib.request.urlopen(f"{base_url}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
    client = anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0)
    print(f"anthropic {anthropic.__version__}, model {model} at {base_url}")
    plain(client, model)
    stops(client, model)
    tools(client, model)
    asyncio.run(many(base_url, model))
    errors(client, model)
    print("\nall as expected")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, anthropic.AnthropicError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
