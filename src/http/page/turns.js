// What is said, as it is seen: one list item a turn, with its actions and numbers.

import { copyButton, el, iconButton } from './dom.js';
import { Markdown } from './markdown.js';

const whole = new Intl.NumberFormat();

/** Seconds or milliseconds, to three digits. */
function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

/** The numbers of an answer, in words. */
export function numbers({ tokens, exact, prompt, cached, first, rate }) {
  const out = [`${exact ? '' : '≈ '}${whole.format(tokens)} ${tokens === 1 ? 'token' : 'tokens'}`];
  if (rate !== null) out.push(`${rate < 10 ? rate.toFixed(1) : whole.format(Math.round(rate))} tokens/s`);
  if (first !== null) out.push(`first after ${duration(first)}`);
  if (prompt !== null) out.push(`prompt ${whole.format(prompt)}, ${whole.format(cached ?? 0)} cached`);
  return out;
}

const endings = {
  length: 'Cut off at the token limit.',
  stopped: 'Stopped.',
};

/**
 * One turn. `actions`: what the reader may ask for: `edit(turn, text)`, `retry(turn)`, `choose(turn)`.
 * While it is being answered, `text`, `waiting` and `fail` change what is shown.
 */
export class Turn {
  constructor(chat, turn, actions) {
    this.turn = turn;
    this.chat = chat;
    this.actions = actions;
    this.body = el('div', { class: 'body' });
    this.notice = el('p', { class: 'notice', hidden: true });
    this.foot = el('div', { class: 'foot' });
    const who = turn.role === 'user' ? 'You' : (turn.model ?? 'Model');
    this.element = el('li', { class: `turn ${turn.role}`, 'data-id': turn.id },
      el('h2', { class: 'who' }, who), this.body, this.notice, this.foot);
    this.markdown = turn.role === 'assistant' ? new Markdown(this.body) : null;
    this.frame = null;
    this.settle();
  }

  /** Shows the turn as it is kept. */
  settle() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.element.removeAttribute('aria-busy');
    if (this.markdown) this.markdown.show(this.turn.content);
    else this.body.replaceChildren(this.turn.content);
    this.say(this.turn.error ?? endings[this.turn.finish] ?? null, Boolean(this.turn.error));
    this.foot.replaceChildren(...this.buttons(), ...this.stats());
  }

  buttons() {
    const { chat, turn, actions } = this;
    const siblings = chat.siblings(turn);
    const at = siblings.indexOf(turn);
    const out = [];
    if (siblings.length > 1) {
      const step = (name, label, by) =>
        iconButton(name, label, () => actions.choose(siblings[at + by]), { disabled: !siblings[at + by] });
      out.push(el('span', { class: 'branch', role: 'group', 'aria-label': 'Versions' },
        step('left', 'Previous version', -1), `${at + 1} / ${siblings.length}`, step('right', 'Next version', 1)));
    }
    out.push(copyButton(() => turn.content));
    if (turn.role === 'user') out.push(iconButton('edit', 'Edit', () => this.edit()));
    else out.push(iconButton('retry', 'Retry', () => actions.retry(turn)));
    return [el('span', { class: 'actions' }, ...out)];
  }

  stats() {
    if (!this.turn.stats) return [];
    return [el('span', { class: 'stats' }, ...numbers(this.turn.stats).map((text) => el('span', {}, text)))];
  }

  say(text, isError = false) {
    this.notice.hidden = !text;
    this.notice.classList.toggle('error', isError);
    this.notice.replaceChildren(text ?? '');
  }

  /** The answer has begun, and grows. Drawn once a frame at most. */
  begin() {
    this.element.setAttribute('aria-busy', 'true');
    this.foot.replaceChildren();
    this.say(null);
  }

  text(text, stats) {
    this.turn.content = text;
    this.turn.stats = stats;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.markdown.show(this.turn.content);
      this.foot.replaceChildren(...this.stats());
    });
  }

  /** The server wants to be asked again in so many seconds. */
  waiting(reason, seconds) {
    this.say(reason && `${reason} Asking again in ${seconds} s.`);
  }

  /** The user's text becomes a field. */
  edit() {
    const field = el('textarea', { 'aria-label': 'Edit the message', rows: '1' });
    field.value = this.turn.content;
    const done = () => {
      form.remove();
      this.body.hidden = false;
      this.foot.hidden = false;
    };
    const send = () => {
      const text = field.value.trim();
      if (!text) return;
      done();
      this.actions.edit(this.turn, text);
    };
    const form = el('form', { class: 'edit', onsubmit: (event) => { event.preventDefault(); send(); } }, field,
      el('div', { class: 'row' },
        el('button', { type: 'button', class: 'quiet', onclick: done }, 'Cancel'),
        el('button', { type: 'submit', class: 'solid' }, 'Send')));
    field.addEventListener('input', () => grow(field));
    field.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        done();
      }
      if (isSend(event)) {
        event.preventDefault();
        send();
      }
    });
    this.body.hidden = true;
    this.foot.hidden = true;
    this.body.after(form);
    grow(field);
    field.focus();
  }
}

/** Enter, but not while a text is being composed, nor for a new line. */
export function isSend(event) {
  return event.key === 'Enter' && !event.shiftKey && !event.isComposing;
}

/** A text field as high as its text. */
export function grow(field) {
  field.style.height = 'auto';
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}
