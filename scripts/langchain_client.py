"""Talks to a running server through LangChain, as applications do, and checks what it gets.

    pip install langchain-openai
    python scripts/langchain_client.py [BASE_URL [MODEL]]

BASE_URL is http://127.0.0.1:8000/v1 unless given, MODEL the name the server has by default. Prints a transcript; exits
non-zero if anything is not as LangChain expects it.
"""

import json
import sys
import urllib.request

from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France? One sentence."


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def heading(title):
    print(f"\n== {title}")


def check(condition, message):
    if not condition:
        sys.exit(f"langchain_client: {message}")


def langchain(base, model):
    chat = ChatOpenAI(base_url=base, api_key="unused", model=model, temperature=0, max_tokens=60, max_retries=0)
    heading("a message")
    answer = chat.invoke([("system", "You are brief."), ("user", QUESTION)])
    print(answer.content)
    check(answer.content.strip(), "an empty answer")
    usage = answer.usage_metadata
    check(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], f"usage does not add up: {usage}")

    heading("streaming")
    chunks = list(chat.stream([("system", "You are brief."), ("user", QUESTION)], stream_usage=True))
    text = "".join(chunk.content for chunk in chunks)
    print(len(chunks), "chunks")
    check(text == answer.content, f"streamed {text!r}")
    check(any(chunk.usage_metadata for chunk in chunks), "no usage in the stream")

    heading("structured output")
    person = chat.with_structured_output(Person, method="json_schema").invoke("Describe Ann, who is 33.")
    print(person)
    check(isinstance(person, Person) and 0 <= person.age <= 150, f"{person!r}")

    heading("a tool is called")
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    asked = chat.bind_tools([weather], tool_choice="required").invoke("What is the weather in Paris?")
    print(asked.tool_calls)
    check([call["name"] for call in asked.tool_calls][:1] == ["get_weather"], "no call")
    check(isinstance(asked.tool_calls[0]["args"]["city"], str), "no city")


def main():
    base = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    if len(sys.argv) > 2:
        model = sys.argv[2]
    else:
        with urllib.request.urlopen(f"{base}/models") as response:
            model = json.load(response)["data"][0]["id"]
    langchain(base, model)
    print("\nall as expected")


if __name__ == "__main__":
    main()
