// Markdown as DOM nodes. What is not Markdown here, HTML above all, stays text.

import { copyButton, el } from './dom.js';
import { inline } from './inline.js';

/** How deep lists and quotations nest; what is deeper is a paragraph. */
const DEPTH = 8;

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;

const isBlank = (line) => line.trim() === '';
const indent = (line) => line.length - line.trimStart().length;

function isRule(line) {
  const marks = line.replace(/\s/g, '');
  return marks.length >= 3 && indent(line) < 4 && (/^\*+$/.test(marks) || /^-+$/.test(marks) || /^_+$/.test(marks));
}

/** A row's cells; a pipe behind a backslash is none. */
function cells(line) {
  const out = [''];
  const row = line.trim();
  for (let i = 0; i < row.length; i++) {
    if (row[i] === '\\' && row[i + 1] === '|') out[out.length - 1] += row[++i];
    else if (row[i] === '|') out.push('');
    else out[out.length - 1] += row[i];
  }
  if (out[0].trim() === '') out.shift();
  if (out.length && out.at(-1).trim() === '') out.pop();
  return out.map((cell) => cell.trim());
}

/** The columns' alignments if a table begins here, else null. */
function tableAt(lines, at) {
  if (!lines[at].includes('|') || !(lines[at + 1] ?? '').includes('-')) return null;
  const marks = cells(lines[at + 1]);
  if (!marks.length || marks.length !== cells(lines[at]).length || !marks.every((m) => /^:?-+:?$/.test(m))) return null;
  return marks.map((m) => (m.endsWith(':') ? (m.startsWith(':') ? 'center' : 'right') : 'left'));
}

/** Whether a paragraph ends before this line. */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    isBlank(line) || FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || isRule(line) ||
    (item && line.trim() !== item[2] && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1)) ||
    tableAt(lines, at) !== null
  );
}

function fence(lines, at, [, space, mark, language]) {
  const body = [];
  const end = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \t]*$`);
  let i = at + 1;
  for (; i < lines.length && !end.test(lines[i]); i++) {
    body.push(lines[i].slice(Math.min(indent(lines[i]), space.length)));
  }
  const code = body.join('\n');
  const make = () =>
    el('figure', { class: 'code' },
      el('figcaption', {}, el('span', {}, language.trim().split(/\s/, 1)[0]), copyButton(() => code, 'Copy code')),
      el('pre', { tabindex: '0' }, el('code', {}, code)));
  return { end: i + 1, make };
}

function heading(lines, at, [mark, level]) {
  let text = lines[at].slice(mark.length).trim();
  let end = text.length;
  while (text[end - 1] === '#') end--;
  if (end === 0 || isBlank(text[end - 1])) text = text.slice(0, end).trim();
  // The page has an h1 and h2s of its own.
  return { end: at + 1, make: () => el(`h${Math.min(level.length + 2, 6)}`, {}, ...inline(text)) };
}

function quote(lines, at, depth) {
  const body = [];
  let i = at;
  for (; i < lines.length && QUOTE.test(lines[i]); i++) body.push(lines[i].replace(QUOTE, ''));
  return { end: i, make: () => el('blockquote', {}, ...nodes(blocks(body, depth + 1))) };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let loose = false;
  let i = at;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || /\d/.test(item[2]) !== ordered || item[1].length > base + 1 || isRule(lines[i])) break;
    const body = [lines[i].slice(item[0].length)];
    // Models indent what belongs to an item by less than its mark is wide.
    const least = item[1].length + 2;
    const width = Math.min(item[0].length, item[1].length + item[2].length + 1);
    let blank = false;
    for (i++; i < lines.length; i++) {
      if (isBlank(lines[i])) blank = true;
      else if (indent(lines[i]) >= least) {
        if (blank) body.push('');
        loose ||= blank;
        blank = false;
        body.push(lines[i].slice(Math.min(indent(lines[i]), width)));
      } else if (!blank && !interrupts(lines, i) && !ITEM.test(lines[i])) body.push(lines[i].trimStart());
      else break;
    }
    items.push(body);
    if (blank && i < lines.length && ITEM.test(lines[i])) loose = true;
  }
  const start = ordered ? parseInt(first[2], 10) : 1;
  const make = () =>
    el(ordered ? 'ol' : 'ul', { start: start === 1 ? null : start },
      ...items.map((body) => el('li', {}, ...nodes(blocks(body, depth + 1), !loose))));
  return { end: i, make };
}

function table(lines, at, columns) {
  const rows = [];
  let i = at + 2;
  for (; i < lines.length && lines[i].includes('|'); i++) rows.push(cells(lines[i]));
  const row = (tag, texts) =>
    el('tr', {}, ...columns.map((side, n) => el(tag, { class: `to-${side}` }, ...inline(texts[n] ?? ''))));
  const make = () =>
    el('div', { class: 'table', tabindex: '0' },
      el('table', {}, el('thead', {}, row('th', cells(lines[at]))), el('tbody', {}, ...rows.map((r) => row('td', r)))));
  return { end: i, make };
}

function paragraph(lines, at) {
  let i = at + 1;
  while (i < lines.length && !interrupts(lines, i)) i++;
  const text = lines.slice(at, i).map((line) => line.trim().replace(/\\$/, '')).join('\n');
  return { end: i, text, make: () => el('p', {}, ...inline(text)) };
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  let match;
  if ((match = FENCE.exec(line))) return fence(lines, at, match);
  if ((match = HEADING.exec(line))) return heading(lines, at, match);
  if (isRule(line)) return { end: at + 1, make: () => el('hr') };
  if (depth < DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEPTH && ITEM.test(line)) return list(lines, at, depth);
  const columns = tableAt(lines, at);
  return columns ? table(lines, at, columns) : paragraph(lines, at);
}

/** The blocks of some lines: each with its source and a function that makes its node. */
function blocks(lines, depth) {
  const out = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const block = blockAt(lines, at, depth);
    out.push({ ...block, source: lines.slice(at, block.end).join('\n') });
    at = block.end;
  }
  return out;
}

/** Their nodes; paragraphs of a tight list's items stand without a `p`. */
function nodes(made, tight = false) {
  return made.flatMap((block) => (tight && block.text !== undefined ? inline(block.text) : [block.make()]));
}

/** An element whose content is Markdown that grows: what has not changed is left as it is. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  show(text) {
    const made = blocks(text.replace(/\r\n?/g, '\n').replaceAll('\t', '    ').split('\n'), 0);
    let same = 0;
    while (same < made.length && same < this.sources.length && made[same].source === this.sources[same]) same++;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...made.slice(same).map((block) => block.make()));
    this.sources = made.map((block) => block.source);
  }
}
