"""Talks to a running server with the official `openai` client, and checks what it says.

    pip install openai
    python scripts/openai_client.py [BASE_URL]

BASE_URL is http://127.0.0.1:8000/v1 unless given. Prints a transcript; exits non-zero if anything is not as
the client expects it.
"""

import asyncio
import json
import math
import sys
from typing import Literal

import openai
from pydantic import BaseModel, Field

# How the model the server has by default answers well.
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "extra_body": {"repetition_penalty": 1.2}}


def heading(title):
    print(f"\n== {title}")


def say(role, text):
    print(f"{role:>9}: {text.strip()}")


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def user(text):
    return {"role": "user", "content": text}


def plain(client, model):
    heading("not streaming")
    question = "What is the capital of France? Answer in one sentence."
    answer = client.chat.completions.create(
        model=model, messages=[user(question)], max_tokens=48, seed=1, **SAMPLING
    )
    choice, usage = answer.choices[0], answer.usage
    say("user", question)
    say("assistant", choice.message.content)
    print(f"           {usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens, {choice.finish_reason}")
    check(choice.message.role == "assistant" and choice.message.content.strip(), "an empty answer")
    check(choice.finish_reason in ("stop", "length"), choice.finish_reason)
    check(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)
    return question, choice.message.content


def streaming(client, model, question, expected):
    heading("streaming, with usage")
    say("user", question)
    stream = client.chat.completions.create(
        model=model,
        messages=[user(question)],
        max_tokens=48,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        **SAMPLING,
    )
    parts, usage, reason = [], None, None
    print("assistant: ", end="")
    for chunk in stream:
        for choice in chunk.choices:
            text = choice.delta.content or ""
            parts.append(text)
            print(text, end="", flush=True)
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    print(f"\n           {len(parts)} chunks, {usage.completion_tokens} completion tokens, {reason}")
    check("".join(parts) == expected, "the stream differs from the answer in one piece")
    check(reason in ("stop", "length"), reason)


def turns(client, model):
    heading("three turns: the cached prefix is not computed again")
    messages = [{"role": "system", "content": "You are a friendly guide who knows rivers and mountains well."}]
    cached = []
    for question in ["Tell me about the Nile.", "How long is it?", "Which sea does it reach?"]:
        messages.append(user(question))
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=40, seed=2, **SAMPLING)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        say("user", question)
        say("assistant", answer.choices[0].message.content)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        print(f"           {cached[-1]} of {answer.usage.prompt_tokens} prompt tokens cached")
    check(cached[2] > cached[1] > 0, f"cached tokens: {cached}")


async def many(base_url, model):
    heading("async: four at once")
    questions = [f"Say something about the number {n}." for n in (3, 5, 7, 11)]
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def one(question, seed):
            stream = await client.chat.completions.create(
                model=model, messages=[user(question)], max_tokens=24, seed=seed, stream=True, **SAMPLING
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        answers = await asyncio.gather(*(one(q, i) for i, q in enumerate(questions)))
    for question, answer in zip(questions, answers):
        say("user", question)
        say("assistant", answer)
        check(answer.strip(), "an empty answer")


def choices(client, model):
    heading("n=2, the same seed twice")
    question = "Invent a name for a boat."
    ask = lambda: client.chat.completions.create(
        model=model, messages=[user(question)], n=2, max_tokens=20, seed=7, **SAMPLING
    )
    first, second = ask(), ask()
    say("user", question)
    texts = [c.message.content for c in first.choices]
    for text in texts:
        say("assistant", text)
    check([c.index for c in first.choices] == [0, 1], "two choices")
    check(texts[0] != texts[1], "the choices are alike")
    check(texts == [c.message.content for c in second.choices], "the seed does not repeat the answer")


def logprobs(client, model):
    heading("log-probabilities")
    answer = client.chat.completions.create(
        model=model, messages=[user("Is water wet?")], max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    for token in content:
        top = ", ".join(f"{t.token!r} {t.logprob:.3f}" for t in token.top_logprobs)
        print(f"           {token.token!r:>12} {token.logprob:8.3f}   ({top})")
        check(token.logprob <= 0 and len(token.top_logprobs) == 2, token)
        check(bytes(token.bytes).decode(errors="ignore") in token.token, token)
    check(len(content) == answer.usage.completion_tokens, "one for each token")


def completions(client, model):
    heading("completions: echo scores the prompt")
    prompt = "The capital of France is"
    scored = client.completions.create(
        model=model, prompt=prompt, max_tokens=4, temperature=0, echo=True, logprobs=2
    ).choices[0]
    say("text", scored.text)
    arrays = scored.logprobs
    check(scored.text.startswith(prompt), "the prompt comes first")
    check(arrays.token_logprobs[0] is None and arrays.top_logprobs[0] is None, "nothing precedes the first token")
    sizes = {len(a) for a in (arrays.tokens, arrays.token_logprobs, arrays.top_logprobs, arrays.text_offset)}
    check(len(sizes) == 1, sizes)
    rows = zip(arrays.tokens, arrays.token_logprobs, arrays.top_logprobs, arrays.text_offset)
    for token, logprob, top, offset in rows:
        print(f"           {offset:>3} {token!r:>12} {logprob if logprob is None else round(logprob, 3)}")
        check(scored.text.startswith(token, offset), "the offset is where the token stands")
        # A greedy token is the best of its own list, to the last digit.
        check(logprob is None or offset < len(prompt) or logprob == max(top.values()), (token, logprob, top))

    heading("completions: the best of four, batches in order, streams")
    four = client.completions.create(
        model=model, prompt=prompt, max_tokens=8, temperature=1, seed=3, n=4, logprobs=0
    ).choices
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    best = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=1, seed=3, best_of=4)
    for choice in four:
        say(f"{mean(choice):.3f}", choice.text)
    check(best.choices[0].text == max(four, key=mean).text, "the best is the likeliest")
    check(best.usage.completion_tokens >= 4, "all four count")
    prompts = [prompt, "Two and two make"]
    greedy = {"model": model, "max_tokens": 6, "temperature": 0}
    batch = client.completions.create(prompt=prompts, n=2, **greedy)
    check([c.index for c in batch.choices] == [0, 1, 2, 3], "prompt by prompt")
    for i, text in enumerate(prompts):
        alone = client.completions.create(prompt=text, **greedy).choices[0].text
        check([c.text for c in batch.choices[2 * i : 2 * i + 2]] == [alone, alone], "a batch changes nothing")
    parts = [""] * 2
    for chunk in client.completions.create(prompt=prompts, stream=True, **greedy):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    check(parts == [batch.choices[0].text, batch.choices[2].text], "the stream differs")


def embeddings(client, model):
    heading("embeddings")
    texts = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Interest rates rose by a quarter."]
    # The client asks for base64 unless told otherwise, and decodes it.
    coded = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    check([e.index for e in plain.data] == [0, 1, 2], "in order")
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    for a, b in zip(coded.data, plain.data):
        check(max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-7, "float and base64 differ")
        check(math.isclose(dot(b.embedding, b.embedding), 1, rel_tol=1e-5), "of length 1")
    vectors = [e.embedding for e in plain.data]
    near, far = dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2])
    print(f"           {len(vectors[0])} dimensions; cats {near:.3f}, cat and rates {far:.3f}")
    check(near > far, "what means the same is nearer")
    last = client.embeddings.create(model=model, input=texts[0], extra_body={"pooling": "last"})
    check(last.data[0].embedding != vectors[0], "another pooling, another vector")
    check(last.usage.prompt_tokens == last.usage.total_tokens > 0, last.usage)


class Person(BaseModel):
    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=150)
    colours: list[Literal["red", "green", "blue"]] = Field(max_length=3)


def structured(client, model):
    heading("structured output: .parse()")
    question = "Describe a person called Ann, who is 33 and likes red and blue."
    ask = {"model": model, "messages": [user(question)], "max_tokens": 120, "seed": 5, **SAMPLING}
    answer = client.chat.completions.parse(response_format=Person, **ask)
    person = answer.choices[0].message.parsed
    say("user", question)
    say("assistant", repr(person))
    check(isinstance(person, Person) and person.age <= 150, person)
    with client.chat.completions.stream(response_format=Person, **ask) as stream:
        for _ in stream:
            pass
        check(stream.get_final_completion().choices[0].message.parsed == person, "the stream differs")
    schema = {**Person.model_json_schema(), "additionalProperties": False}
    body = {**SAMPLING["extra_body"], "structured_outputs": {"json": schema}}
    answer = client.chat.completions.create(**{**ask, "extra_body": body})
    check(Person.model_validate_json(answer.choices[0].message.content), "as vLLM has it")


def tools(client, model):
    heading("tools: a call that must be, and its result")
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": parameters}}
    messages = [user("What is the weather in Paris?")]
    ask = {"model": model, "tools": [tool], "parallel_tool_calls": False, "max_tokens": 100, "seed": 7, **SAMPLING}
    answer = client.chat.completions.create(messages=messages, tool_choice="required", **ask).choices[0]
    (call,) = answer.message.tool_calls
    say("assistant", f"{call.function.name}({call.function.arguments})")
    check(answer.finish_reason == "tool_calls" and answer.message.content is None, answer)
    check(isinstance(json.loads(call.function.arguments)["city"], str), call)
    with client.chat.completions.stream(messages=messages, tool_choice="required", **ask) as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    check(streamed.function.arguments == call.function.arguments, "the stream differs")
    check(streamed.function.parsed_arguments == json.loads(call.function.arguments), streamed)
    messages += [answer.message, {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}]
    final = client.chat.completions.create(messages=messages, tool_choice="none", **ask).choices[0]
    say("assistant", final.message.content)
    check(final.finish_reason in ("stop", "length") and final.message.content.strip(), final)


def responses(client, model):
    heading("responses: whole, streaming, with what was said")
    question = "What is the capital of France? Answer in one sentence."
    ask = {"model": model, "max_output_tokens": 48, "temperature": 0, "extra_body": {"repetition_penalty": 1.2}}
    whole = client.responses.create(input=question, instructions="You are brief.", **ask)
    say("user", question)
    say("assistant", whole.output_text)
    check(whole.status in ("completed", "incomplete") and whole.output_text.strip(), whole.status)
    check(whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens, whole.usage)
    check(whole.store is False and whole.error is None, "nothing is kept")
    kinds, parts = [], []
    for event in client.responses.create(input=question, instructions="You are brief.", stream=True, **ask):
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            parts.append(event.delta)
    check("".join(parts) == whole.output_text, "the stream differs from the response in one piece")
    check(kinds[:2] == ["response.created", "response.in_progress"], kinds[:2])
    check(kinds[-1] == f"response.{whole.status}", kinds[-1])
    print(f"           {len(kinds)} events, the last {kinds[-1]}")
    # The client adds events up itself.
    with client.responses.stream(input="Say hello.", **(ask | {"max_output_tokens": 200})) as stream:
        for event in stream:
            pass
    check(event.type in ("response.completed", "response.incomplete"), event.type)
    turns = [user(question), *whole.output, user("And of Italy?")]
    say("assistant", client.responses.create(input=turns, **ask).output_text)
    cut = client.responses.create(
        input="Count to twenty.",
        model=model,
        max_output_tokens=4,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    check(cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut.status)
    logprobs = cut.output[0].content[0].logprobs
    check(logprobs and all(len(token.top_logprobs) == 2 for token in logprobs), logprobs)
    add = {
        "type": "function",
        "name": "add",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    }
    called = client.responses.create(
        input="What is 2 and 3?", model=model, tools=[add], tool_choice="required", temperature=0, max_output_tokens=96
    )
    call = called.output[-1]
    check(call.type == "function_call" and call.name == "add", called.output)
    print(f"           {call.name}({call.arguments}), {called.status}")
    check(called.status == "incomplete" or set(json.loads(call.arguments)) == {"a", "b"}, call.arguments)
    try:
        client.responses.create(input="Hi", model=model, previous_response_id=whole.id)
    except openai.BadRequestError as error:
        check(error.param == "previous_response_id", error)
        print(f"           {error.body['message']}")
    else:
        raise AssertionError("previous_response_id was accepted")


def errors(client, model):
    heading("errors")
    for kind, status, arguments in [
        (openai.BadRequestError, 400, {"model": model, "temperature": 9}),
        (openai.BadRequestError, 400, {"model": model, "max_tokens": 0}),
        (openai.BadRequestError, 400, {"model": model, "extra_body": {"structured_outputs": {"regex": "("}}}),
        (openai.NotFoundError, 404, {"model": "no-such-model"}),
    ]:
        try:
            client.chat.completions.create(messages=[user("Hello")], **arguments)
        except kind as error:
            check(error.status_code == status and error.body["message"], error)
            print(f"           {type(error).__name__}: {error.body['message']}")
        else:
            raise AssertionError(f"{arguments} was accepted")


def main():
    base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    print(f"openai {openai.__version__}, model {model} at {base_url}")
    check(client.models.retrieve(model).id == model, "the model by its name")
    question, answer = plain(client, model)
    streaming(client, model, question, answer)
    turns(client, model)
    asyncio.run(many(base_url, model))
    choices(client, model)
    logprobs(client, model)
    completions(client, model)
    embeddings(client, model)
    structured(client, model)
    tools(client, model)
    responses(client, model)
    errors(client, model)
    print("\nall as expected")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, openai.OpenAIError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
