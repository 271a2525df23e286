// Sampling controls. An empty one is left to the server.

import { $, el } from './dom.js';
import { local } from './storage.js';

const KEPT = 'lima.sampling';

/** Name in the API, label, range, step; `slider` where a value is found by feeling. */
const CONTROLS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05, slider: 1 },
  { name: 'top_p', label: 'Top-p', min: 0, max: 1, step: 0.01, slider: 1 },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 0.01, max: 100, step: 0.01, slider: 1, shown: [0.8, 1.6] },
  { name: 'top_k', label: 'Top-k', min: -1, max: 1000000, step: 1 },
  { name: 'max_tokens', label: 'Longest answer', min: 1, max: 16777216, step: 1 },
  { name: 'seed', label: 'Seed', min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

/** The recipe of LIMA's authors. */
const RECIPE = { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.2 };

const fields = new Map();

function kept() {
  try {
    return JSON.parse(local.get(KEPT)) ?? {};
  } catch {
    return {};
  }
}

function keep() {
  local.set(KEPT, JSON.stringify(sampling()));
}

function control({ name, label, min, max, step, slider, shown }) {
  const id = `set-${name}`;
  const number = el('input', { id, type: 'number', min, max, step: step < 1 ? 'any' : 1, placeholder: 'auto', inputmode: 'decimal' });
  const show = (value) => {
    number.value = value ?? '';
    if (range) {
      range.value = value ?? slider;
      range.classList.toggle('unset', value === null);
    }
  };
  const [low, high] = shown ?? [min, max];
  const range = slider && el('input', { type: 'range', min: low, max: high, step, 'aria-label': label, tabindex: '-1' });
  range?.addEventListener('input', () => {
    show(Number(range.value));
    keep();
  });
  number.addEventListener('input', () => {
    const value = read(number);
    if (range) {
      range.value = value ?? slider;
      range.classList.toggle('unset', value === null);
    }
    keep();
  });
  fields.set(name, { number, show });
  return el('div', { class: 'control' }, el('label', { for: id }, label), number, range || null);
}

/** A field's number, or null if it is empty or out of its range. */
function read(number) {
  return number.value !== '' && number.validity.valid ? Number(number.value) : null;
}

/** The fields that are set, as the API names them. */
export function sampling() {
  const set = [...fields].map(([name, { number }]) => [name, read(number)]);
  return Object.fromEntries(set.filter(([, value]) => value !== null));
}

function apply(values) {
  for (const [name, { show }] of fields) show(typeof values[name] === 'number' ? values[name] : null);
}

/** Builds the controls. */
export function start() {
  $('controls').append(...CONTROLS.map(control));
  apply(kept());
  $('defaults').addEventListener('click', () => {
    apply({});
    keep();
  });
  $('recipe').addEventListener('click', () => {
    apply({ ...sampling(), ...RECIPE });
    keep();
  });
}
