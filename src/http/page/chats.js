// Conversations: trees of turns, kept in the browser's storage.
//
// Editing or retrying adds a sibling and keeps what was there. `chosen` names, for each turn (`root` for the
// beginning), the one that follows in what is shown.

import { local } from './storage.js';

const PREFIX = 'lima.chat.';
const ROOT = 'root';

function id() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Chat {
  constructor(data = {}) {
    this.id = data.id ?? id();
    this.updated = data.updated ?? Date.now();
    this.system = data.system ?? '';
    this.turns = new Map((data.turns ?? []).map((turn) => [turn.id, turn]));
    this.chosen = data.chosen ?? {};
  }

  /** The turns that are shown, first to last. */
  get path() {
    const out = [];
    for (let at = this.chosen[ROOT]; at !== undefined && out.length < this.turns.size; at = this.chosen[at]) {
      out.push(this.turns.get(at));
    }
    return out;
  }

  get title() {
    const first = this.path[0]?.content.trim().split('\n', 1)[0] ?? '';
    return first.length > 60 ? `${first.slice(0, 60).trimEnd()}…` : first || 'New chat';
  }

  /** Adds a turn after `parent` (null: at the beginning), and shows it. */
  add(parent, role, content) {
    const turn = { id: id(), parent: parent?.id ?? ROOT, role, content };
    this.turns.set(turn.id, turn);
    this.chosen[turn.parent] = turn.id;
    return turn;
  }

  /** Takes a turn back that nothing follows. */
  remove(turn) {
    const others = this.siblings(turn).filter((other) => other !== turn);
    this.turns.delete(turn.id);
    if (others.length) this.chosen[turn.parent] = others.at(-1).id;
    else delete this.chosen[turn.parent];
  }

  parent(turn) {
    return this.turns.get(turn.parent) ?? null;
  }

  /** The turns that stand for each other, this one among them. */
  siblings(turn) {
    return [...this.turns.values()].filter((other) => other.parent === turn.parent);
  }

  /** Shows `turn` instead of its siblings. */
  choose(turn) {
    this.chosen[turn.parent] = turn.id;
  }

  /** What is sent: the turns up to and with `last`, after the system prompt. */
  messages(last) {
    const messages = [];
    for (let turn = last; turn; turn = this.parent(turn)) {
      // An answer that failed said nothing.
      if (turn.content) messages.unshift({ role: turn.role, content: turn.content });
    }
    if (this.system.trim()) messages.unshift({ role: 'system', content: this.system });
    return messages;
  }

  /** One line of JSON, in the form that trainers read. */
  get line() {
    return `${JSON.stringify({ messages: this.messages(this.path.at(-1)) })}\n`;
  }

  /** Keeps it; false if the browser does not. */
  save() {
    if (!this.turns.size) return true;
    this.updated = Date.now();
    const { id, updated, system, chosen } = this;
    return local.set(PREFIX + id, JSON.stringify({ id, updated, system, chosen, turns: [...this.turns.values()] }));
  }

  forget() {
    local.remove(PREFIX + this.id);
  }
}

function isTurn(turn) {
  return typeof turn?.id === 'string' && typeof turn.content === 'string' && ['user', 'assistant'].includes(turn.role);
}

function read(name) {
  try {
    const data = JSON.parse(local.get(name));
    if (!Array.isArray(data.turns) || !data.turns.every(isTurn)) return null;
    const chat = new Chat(data);
    return chat.path.length && chat.path.every(Boolean) ? chat : null;
  } catch {
    return null;
  }
}

/** All that are kept, the latest first. */
export function kept() {
  const names = local.names().filter((name) => name.startsWith(PREFIX));
  return names.map(read).filter(Boolean).sort((a, b) => b.updated - a.updated);
}
