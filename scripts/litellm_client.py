"""Talks to a running server through LiteLLM, as applications do, and checks what it gets.

    pip install litellm
    python scripts/litellm_client.py [BASE_URL [MODEL]]

BASE_URL is http://127.0.0.1:8000/v1 unless given, MODEL the name the server has by default. Prints a transcript; exits
non-zero if anything is not as LiteLLM expects it.
"""

import asyncio
import json
import os
import sys
import urllib.request

# Its list of prices would otherwise be fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

QUESTION = "What is the capital of France? One sentence."


def heading(title):
    print(f"\n== {title}")


def check(condition, message):
    if not condition:
        sys.exit(f"litellm_client: {message}")


def lite(base, model):
    settings = {
        "model": f"openai/{model}",
        "api_base": base,
        "api_key": "unused",
        "temperature": 0,
        "max_tokens": 40,
        "messages": [{"role": "user", "content": QUESTION}],
        "num_retries": 0,
    }
    heading("a message")
    answer = litellm.completion(**settings)
    text = answer.choices[0].message.content
    print(text)
    check(text.strip() and answer.usage.total_tokens > 0, "an empty answer")

    heading("streaming")
    chunks = list(litellm.completion(**settings, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    print(len(chunks), "chunks")
    check(streamed == text, f"streamed {streamed!r}")

    heading("async")
    again = asyncio.run(litellm.acompletion(**settings))
    check(again.choices[0].message.content == text, "another answer")

    heading("an error")
    try:
        litellm.completion(**settings | {"messages": []})
        check(False, "no messages are no error")
    except litellm.BadRequestError as error:
        print(type(error).__name__)


def main():
    base = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    if len(sys.argv) > 2:
        model = sys.argv[2]
    else:
        with urllib.request.urlopen(f"{base}/models") as response:
            model = json.load(response)["data"][0]["id"]
    lite(base, model)
    print("\nall as expected")


if __name__ == "__main__":
    main()
