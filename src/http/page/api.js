// Requests to the server this page came from, and what can go wrong with them.

import { session } from './storage.js';

const KEY = 'lima.key';

/** Why there is no answer, in words. */
export class Refusal extends Error {
  /** `retryAfter`: seconds after which the server wants to be asked again, or null. */
  constructor(message, { status = null, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

let askForKey = async () => null;

/** Says how a key is come by: a function of why one is needed, whose promise gives a key or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const key = () => session.get(KEY);

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not ours: a proxy, perhaps.
  }
  const seconds = Number.parseInt(response.headers.get('retry-after') ?? '', 10);
  return new Refusal(error.message ?? `The server answered ${response.status} ${response.statusText}.`, {
    status: response.status,
    code: error.code,
    retryAfter: Number.isFinite(seconds) ? Math.max(1, seconds) : null,
  });
}

/** One request, with the key if there is one. Throws a `Refusal`, or an `AbortError`. */
export async function once(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body ? 'POST' : 'GET',
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: 'no-store',
      credentials: 'same-origin',
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal('The server cannot be reached.');
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The same; asks for a key as often as the server wants another one. */
export async function request(path, options = {}) {
  for (;;) {
    const used = key();
    try {
      return await once(path, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      // Another request may have been told meanwhile.
      if (key() === used) {
        const entered = await askForKey(used ? 'The server does not know this key.' : 'This server answers only with a key.');
        if (!entered) throw error;
        session.set(KEY, entered);
      }
      options.signal?.throwIfAborted();
    }
  }
}

/** The data of server-sent events, however the text is cut into pieces. */
export class EventParser {
  #rest = '';
  #data = [];

  /** Takes a piece, and returns the events that are complete. */
  push(piece) {
    const events = [];
    const lines = (this.#rest + piece).split('\n');
    this.#rest = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
      if (line === '') {
        if (this.#data.length) events.push(this.#data.join('\n'));
        this.#data = [];
      } else if (line.startsWith('data:')) {
        this.#data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
    }
    return events;
  }
}

/** The chunks of a streamed chat. */
export async function* chat(body, signal) {
  const response = await request('v1/chat/completions', { body, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new Refusal('The connection broke before the answer was complete.');
      }
      const text = read.done ? decoder.decode() : decoder.decode(read.value, { stream: true });
      for (const data of parser.push(text)) {
        if (data === '[DONE]') return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refusal(chunk.error.message, { code: chunk.error.code });
        yield chunk;
      }
      if (read.done) throw new Refusal('The connection ended before the answer was complete.');
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The served models, adapters among them. */
export async function models() {
  return (await (await request('v1/models')).json()).data;
}
