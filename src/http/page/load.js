// The live panel: what the server is doing, from its metrics. Where they cannot be had, there is no panel.

import { once } from './api.js';
import { $, el, svg } from './dom.js';

const EVERY = 1500;
/** After a failure. */
const LATER = 15000;
/** Points of a line. */
const HISTORY = 60;
const WIDTH = 72;
const HEIGHT = 18;

/** Sums of Prometheus' text by name, over all labels. */
export function parse(text) {
  const sums = new Map();
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)/.exec(line);
    if (match) sums.set(match[1], (sums.get(match[1]) ?? 0) + Number(match[2]));
  }
  return sums;
}

const count = (value) => String(Math.round(value));
const percent = (value) => `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;

/** What a line shows: a value of two samples, the later and the one before it, or null. `top` is the scale's end. */
const ROWS = [
  { label: 'Running', of: (now) => now.get('vllm:num_requests_running'), show: count, top: 1 },
  { label: 'Waiting', of: (now) => now.get('vllm:num_requests_waiting'), show: count, top: 1 },
  { label: 'KV cache', of: (now) => now.get('vllm:kv_cache_usage_perc'), show: percent, top: 0.01 },
  {
    label: 'Tokens/s',
    of: (now, before, seconds) => difference(now, before, 'vllm:generation_tokens_total') / seconds,
    show: count,
    top: 10,
  },
  {
    label: 'Prefix hits',
    // Over what was asked since the page was opened; null before anything was.
    of: (now, before, seconds, first) => {
      const asked = difference(now, first, 'vllm:prefix_cache_queries_total');
      return asked > 0 ? difference(now, first, 'vllm:prefix_cache_hits_total') / asked : null;
    },
    show: percent,
    top: 1,
  },
];

function difference(now, before, name) {
  return Math.max(0, (now.get(name) ?? 0) - (before.get(name) ?? 0));
}

/** A line through the values, the newest at the right. */
function path(values, top) {
  const scale = Math.max(top, ...values);
  const step = WIDTH / (HISTORY - 1);
  const from = WIDTH - (values.length - 1) * step;
  const y = (value) => (HEIGHT - 1.5 - (value / scale) * (HEIGHT - 3)).toFixed(1);
  return values.map((value, i) => `${i ? 'L' : 'M'}${(from + i * step).toFixed(1)} ${y(value)}`).join('');
}

function row({ label, of, show, top }) {
  const value = el('output', {}, '–');
  const line = svg('path', { class: 'line' });
  const area = svg('path', { class: 'area' });
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, 'aria-hidden': 'true', preserveAspectRatio: 'none' }, area, line);
  const values = [];
  $('load').querySelector('dl').append(el('div', {}, el('dt', {}, label), el('dd', {}, drawing, value)));
  return (now, before, seconds, first) => {
    const number = of(now, before, seconds, first);
    value.textContent = number === null || !Number.isFinite(number) ? '–' : show(number);
    values.push(Number.isFinite(number) ? number : 0);
    if (values.length > HISTORY) values.shift();
    if (values.length < 2) return;
    const d = path(values, top);
    line.setAttribute('d', d);
    area.setAttribute('d', `${d}V${HEIGHT}H${(WIDTH - (values.length - 1) * (WIDTH / (HISTORY - 1))).toFixed(1)}Z`);
  };
}

async function sample() {
  const text = await (await once('metrics')).text();
  const now = parse(text);
  if (!now.has('vllm:num_requests_running')) throw new Error('no engine yet');
  return now;
}

/** Watches until the page is closed; rests while nobody looks. */
export async function start() {
  const rows = ROWS.map(row);
  let first = null;
  let before = null;
  let at = 0;
  for (;;) {
    let wait = EVERY;
    if (!document.hidden) {
      try {
        const now = await sample();
        const seconds = (performance.now() - at) / 1000;
        at = performance.now();
        first ??= now;
        rows.forEach((update) => update(now, before ?? now, seconds, first));
        before = now;
        $('load').hidden = false;
      } catch (error) {
        $('load').hidden = true;
        before = null;
        // Metrics on a port of their own stay where they are.
        if (error.status === 404) return;
        wait = LATER;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
