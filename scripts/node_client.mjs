// Talks to a running server with the official `openai` package for Node, and checks what it says.
//
//     npm install --prefix FOLDER openai
//     LIMA_TEST_NODE=FOLDER node scripts/node_client.mjs [BASE_URL [MODEL]]
//
// BASE_URL is http://127.0.0.1:8000/v1 unless given, MODEL the name the server has by default. Prints a transcript; exits
// non-zero if anything is not as the client expects it.

import { strict as assert } from "node:assert";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const require = createRequire(resolve(process.env.LIMA_TEST_NODE ?? ".", "package.json"));
const OpenAI = require("openai").default;

const baseURL = process.argv[2] ?? "http://127.0.0.1:8000/v1";
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const model = process.argv[3] ?? (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the capital of France? One sentence." }];
const settings = { model, messages, temperature: 0, max_completion_tokens: 40 };
const heading = (title) => console.log(`\n== ${title}`);

heading("a message");
const answer = await client.chat.completions.create(settings);
const text = answer.choices[0].message.content;
console.log(text);
assert(text.trim() && answer.usage.total_tokens === answer.usage.prompt_tokens + answer.usage.completion_tokens);

heading("streaming");
let streamed = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, answer.usage.completion_tokens);

heading("the stream's own helper");
const final = await client.chat.completions.stream(settings).finalChatCompletion();
assert.equal(final.choices[0].message.content, text);

heading("a tool is called");
const city = { type: "string", maxLength: 20 };
const parameters = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "get_weather", strict: true, parameters } }];
const asked = [{ role: "user", content: "What is the weather in Paris?" }];
const calling = { model, messages: asked, tools, tool_choice: "required", parallel_tool_calls: false, temperature: 0 };
const called = await client.chat.completions.create(calling);
const call = called.choices[0].message.tool_calls[0];
console.log(`${call.function.name}(${call.function.arguments})`);
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(typeof JSON.parse(call.function.arguments).city, "string");

heading("responses");
const response = await client.responses.create({ model, input: messages[0].content, temperature: 0, max_output_tokens: 40 });
assert.equal(response.output_text, text);
const types = [];
for await (const event of await client.responses.create({ model, input: "Hello", stream: true, max_output_tokens: 16 })) types.push(event.type);
assert.equal(types[0], "response.created");
assert(["response.completed", "response.incomplete"].includes(types.at(-1)), types.at(-1));

heading("errors");
await assert.rejects(client.chat.completions.create({ ...settings, temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...settings, model: "none" }), OpenAI.NotFoundError);
console.log("BadRequestError, NotFoundError");

console.log("\nall as expected");
