// Markdown within a line: code, emphasis, links. Every search that fails is remembered, so that no text costs more
// than a few passes, however its marks are arranged.

import { el } from './dom.js';

/** How deep emphasis and links nest; deeper marks stay text. */
const DEPTH = 6;
/** Characters that a link's text or address may have. */
const LINK = 2000;
const SCHEMES = ['http:', 'https:', 'mailto:'];

/** The address if it is absolute and of a harmless scheme, else null. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return SCHEMES.includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const link = (href, children) =>
  el('a', { href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...children);

const isSpace = (c) => c === undefined || /\s/.test(c);
const isWord = (c) => c !== undefined && /[\p{L}\p{N}]/u.test(c);

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return end - at;
}

/** Where the run of backticks that closes one of `length` begins, or -1. */
function codeEnd(text, from, length) {
  for (let at = text.indexOf('`', from); at >= 0; at = text.indexOf('`', at)) {
    const run = runLength(text, at);
    if (run === length) return at;
    at += run;
  }
  return -1;
}

/** Where emphasis by `length` times `mark` ends (the place of the closing mark), or -1. */
function emphasisEnd(text, from, mark, length) {
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at)) {
    const run = runLength(text, at);
    const end = at + run;
    const fits = length === 1 ? run % 2 === 1 : length === 2 ? run >= 2 : run === 3;
    const closes = at > from && !isSpace(text[at - 1]) && text[at - 1] !== '\\' && (mark !== '_' || !isWord(text[end]));
    if (fits && closes) return end - length;
    at = end;
  }
  return -1;
}

/** `[text](address)` at `at`: its parts and where it ends; or null. */
function linkAt(text, at) {
  let depth = 0;
  let close = -1;
  for (let i = at; i < text.length && i < at + LINK; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '[') depth++;
    else if (text[i] === ']' && --depth === 0) {
      close = i;
      break;
    }
  }
  if (close < 0 || text[close + 1] !== '(') return null;
  depth = 1;
  for (let i = close + 2; i < text.length && i < close + LINK; i++) {
    if (text[i] === '(') depth++;
    else if (text[i] === ')' && --depth === 0) {
      const [address] = text.slice(close + 2, i).trim().split(/\s/, 1);
      return { label: text.slice(at + 1, close), address: address.replace(/^<|>$/g, ''), end: i + 1 };
    }
  }
  return null;
}

/** What makes up a paragraph: nodes and strings. */
export function inline(text, depth = 0) {
  const out = [];
  // Marks for which there is no end in the rest of the text.
  const dead = new Set();
  let plain = '';
  let at = 0;
  const push = (node) => {
    if (plain) out.push(plain);
    plain = '';
    out.push(node);
  };
  const attempt = (name, find) => {
    if (dead.has(name)) return -1;
    const end = find();
    if (end < 0) dead.add(name);
    return end;
  };
  while (at < text.length) {
    const c = text[at];
    if (c === '\\' && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? '')) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    if (c === '\n') {
      push(el('br'));
      at++;
      continue;
    }
    if (c === '`') {
      const run = runLength(text, at);
      const end = attempt('`'.repeat(run), () => codeEnd(text, at + run, run));
      if (end >= 0) {
        let code = text.slice(at + run, end).replaceAll('\n', ' ');
        if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
        push(el('code', {}, code));
        at = end + run;
      } else {
        plain += '`'.repeat(run);
        at += run;
      }
      continue;
    }
    if ((c === '*' || c === '_' || c === '~') && depth < DEPTH) {
      const run = runLength(text, at);
      const length = c === '~' ? 2 : Math.min(run, 3);
      const opens = run <= 3 && run >= length && !isSpace(text[at + run]) && (c !== '_' || !isWord(text[at - 1]));
      const end = opens ? attempt(c.repeat(length), () => emphasisEnd(text, at + length, c, length)) : -1;
      if (end >= 0) {
        const inner = inline(text.slice(at + length, end), depth + 1);
        if (c === '~') push(el('del', {}, ...inner));
        else if (length === 1) push(el('em', {}, ...inner));
        else if (length === 2) push(el('strong', {}, ...inner));
        else push(el('strong', {}, el('em', {}, ...inner)));
        at = end + length;
      } else {
        plain += text.slice(at, at + run);
        at += run;
      }
      continue;
    }
    if ((c === '[' || (c === '!' && text[at + 1] === '[')) && depth < DEPTH) {
      // Images are links: the page loads nothing from elsewhere.
      const open = c === '!' ? at + 1 : at;
      const found = attempt('[', () => text.indexOf('](', open)) >= 0 ? linkAt(text, open) : null;
      const href = found && safeAddress(found.address);
      if (href) {
        push(link(href, found.label ? inline(found.label, DEPTH) : [href]));
        at = found.end;
        continue;
      }
    }
    if (c === '<' || ((c === 'h' || c === 'H') && depth < DEPTH && !isWord(text[at - 1]))) {
      const bare = /<?(https?:\/\/[^\s<>"'`*]+)>?/iy;
      bare.lastIndex = at;
      const match = bare.exec(text);
      if (match) {
        const closed = c === '<' && match[0].endsWith('>');
        const address = closed ? match[1] : match[1].replace(/[.,;:!?)\]}_]+$/, '');
        const href = safeAddress(address);
        if (href && (closed || c !== '<')) {
          push(link(href, [address]));
          at += closed ? match[0].length : address.length;
          continue;
        }
      }
    }
    plain += c;
    at++;
  }
  if (plain) out.push(plain);
  return out;
}
