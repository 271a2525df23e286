// One answer: asks for it, waits where the server says so, and measures.

import { Refusal, chat } from './api.js';

/** How often a server that is too busy is asked again. */
const TRIES = 20;

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** Counts down, telling `watch.waiting` each second. */
async function countDown(refusal, signal, watch) {
  for (let left = refusal.retryAfter; left > 0; left--) {
    watch.waiting(refusal.message, left);
    await pause(1000, signal);
  }
  watch.waiting(null, 0);
}

/**
 * Streams the answer to `body`. `watch.text(all)` is told of the text so far, `watch.waiting(reason, seconds)` of
 * a server that wants to be asked later. Returns `{ finish, stats }`; throws a `Refusal`, or an `AbortError` after
 * `signal`, either with the `stats` so far.
 */
export async function answer(body, signal, watch) {
  for (let tries = 1; ; tries++) {
    const begun = performance.now();
    let text = '';
    let finish = null;
    let usage = null;
    let first = null;
    let last = null;
    let pieces = 0;
    const stats = () => ({
      tokens: usage?.completion_tokens ?? pieces,
      exact: usage !== null,
      prompt: usage?.prompt_tokens ?? null,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? null,
      first: first === null ? null : first - begun,
      // The first token's time is the prompt's: a rate is of those after it.
      rate: rate(usage?.completion_tokens ?? pieces, first, last),
    });
    try {
      const request = { ...body, stream: true, stream_options: { include_usage: true } };
      for await (const chunk of chat(request, signal)) {
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        finish = choice.finish_reason ?? finish;
        if (choice.delta.content) {
          last = performance.now();
          first ??= last;
          pieces++;
          text += choice.delta.content;
          watch.text(text, stats());
        }
      }
      return { finish, stats: stats() };
    } catch (error) {
      if (error instanceof Refusal && error.retryAfter && text === '' && tries < TRIES) {
        await countDown(error, signal, watch);
        continue;
      }
      error.stats = text ? stats() : null;
      throw error;
    }
  }
}

function rate(tokens, first, last) {
  return first !== null && tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : null;
}
