// The page: puts the parts together.

import * as api from './api.js';
import { answer } from './answer.js';
import { Chat, kept } from './chats.js';
import { $, announce, el } from './dom.js';
import * as load from './load.js';
import * as settings from './settings.js';
import { askForKey, startTheme } from './shell.js';
import { local } from './storage.js';
import { Turn, grow, isSend } from './turns.js';

const EXAMPLES = [
  'Explain how a suspension bridge carries its load.',
  'Write a Python function that reverses a linked list.',
  'Plan three days in Lisbon, as a table.',
];

const state = {
  chat: new Chat(),
  /** Of the answer that is being written, else null. */
  running: null,
  views: [],
  served: [],
};

const scroll = $('scroll');
/** Whether the reader looks at the end, which then stays in sight. */
let following = true;

function follow() {
  if (following) scroll.scrollTop = scroll.scrollHeight;
  $('latest').hidden = following;
}

scroll.addEventListener('scroll', () => {
  following = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
  $('latest').hidden = following;
});
new ResizeObserver(follow).observe($('turns'));

const actions = {
  edit(turn, text) {
    if (!turn || state.running) return;
    ask(state.chat.parent(turn), text);
  },
  retry(turn) {
    if (!state.running) reply(state.chat.parent(turn));
  },
  choose(turn) {
    if (state.running) return;
    state.chat.choose(turn);
    save();
    draw();
    state.views.find((view) => view.turn === turn)?.element.querySelector('.branch button:not(:disabled)')?.focus();
  },
};

/** Draws the whole conversation; what grows meanwhile is the answer's own affair. */
function draw() {
  const path = state.chat.path;
  state.views = path.map((turn) => new Turn(state.chat, turn, actions));
  $('turns').replaceChildren(...state.views.map((view) => view.element));
  $('empty').hidden = path.length > 0;
  $('clear').disabled = $('export').disabled = path.length === 0;
  const { title } = state.chat;
  $('title').textContent = title;
  document.title = path.length ? `${title} · lima` : 'lima';
  if ($('system').value !== state.chat.system) $('system').value = state.chat.system;
  following = true;
  follow();
}

function drawList() {
  const chats = kept();
  $('chats').replaceChildren(...chats.map((chat) =>
    el('li', {}, el('button', {
      type: 'button',
      'aria-current': chat.id === state.chat.id ? 'true' : null,
      onclick: () => open(chat),
    }, chat.title))));
}

function save() {
  if (!state.chat.save()) announce('The browser does not keep this chat: its storage is full or off.');
  drawList();
}

function open(chat) {
  stop();
  state.chat = chat;
  draw();
  drawList();
  close('rail', 'menu');
  $('input').focus();
}

const fresh = () => open(Object.assign(new Chat(), { system: state.chat.turns.size ? '' : state.chat.system }));

function stop() {
  state.running?.abort();
}

function busy(is) {
  $('stop').hidden = !is;
  $('send').hidden = is;
  $('turns').classList.toggle('busy', is);
}

/** Adds what the user says after `parent`, and has it answered. */
function ask(parent, text) {
  reply(state.chat.add(parent, 'user', text));
}

/** Answers a turn of the user's. */
async function reply(question) {
  const { chat } = state;
  const controller = new AbortController();
  state.running = controller;
  const turn = chat.add(question, 'assistant', '');
  turn.model = $('model').value || undefined;
  save();
  draw();
  busy(true);
  const view = state.views.at(-1);
  view.begin();
  announce('Answering.');
  try {
    const body = { model: $('model').value, messages: chat.messages(question), ...settings.sampling() };
    const { finish, stats } = await answer(body, controller.signal, view);
    Object.assign(turn, { finish, stats });
    announce('The answer is complete.');
  } catch (error) {
    turn.stats = error.stats ?? null;
    if (controller.signal.aborted) turn.finish = 'stopped';
    else turn.error = error instanceof api.Refusal ? error.message : `The page failed: ${error.message}`;
    announce(turn.error ?? 'Stopped.');
  }
  // An answer of which there is nothing leaves the question alone.
  if (!turn.content && turn.finish === 'stopped') chat.remove(turn);
  state.running = null;
  busy(false);
  chat.save();
  drawList();
  if (state.chat !== chat) return;
  if (chat.turns.has(turn.id)) {
    view.settle();
    follow();
  } else {
    draw();
  }
}

function submit() {
  const text = $('input').value.trim();
  if (!text || state.running) return;
  $('input').value = '';
  resized();
  ask(state.chat.path.at(-1) ?? null, text);
}

function resized() {
  grow($('input'));
  $('send').disabled = $('input').value.trim() === '';
}

function exportChat() {
  const file = URL.createObjectURL(new Blob([state.chat.line], { type: 'application/jsonl' }));
  const name = state.chat.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 40);
  el('a', { href: file, download: `${name || 'chat'}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(file), 10000);
}

function clear() {
  stop();
  if (!confirm(`Delete “${state.chat.title}”?`)) return;
  state.chat.forget();
  open(new Chat());
}

function toggle(panel, button, on) {
  $(panel).classList.toggle('open', on);
  if (panel === 'settings') $(panel).hidden = !on;
  $(button).setAttribute('aria-expanded', String(on));
}

const close = (panel, button) => toggle(panel, button, false);

function keys(event) {
  const inField = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === 'Escape' && !$('key').open) {
    if (state.running) stop();
    else if (!$('settings').hidden) close('settings', 'tune');
    else close('rail', 'menu');
  } else if (event.key === 'O' && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    fresh();
  } else if (event.key === '/' && !inField && !$('key').open) {
    event.preventDefault();
    $('input').focus();
  }
}

function editLast() {
  const view = state.views.findLast((one) => one.turn.role === 'user');
  if (view && !state.running) view.edit();
}

/** Fills the list of models; asks again while the server is loading. */
async function listModels() {
  for (;;) {
    try {
      state.served = await api.models();
      break;
    } catch (error) {
      $('about').textContent = error.message;
      if (error.status === 401) return false;
      await new Promise((resolve) => setTimeout(resolve, (error.retryAfter ?? 5) * 1000));
    }
  }
  const select = $('model');
  select.replaceChildren(...state.served.map((model) =>
    el('option', { value: model.id }, model.parent ? `${model.id} · adapter` : model.id)));
  const chosen = local.get('lima.model');
  if (state.served.some((model) => model.id === chosen)) select.value = chosen;
  select.disabled = false;
  about();
  return true;
}

function about() {
  const model = state.served.find((one) => one.id === $('model').value);
  const length = model && new Intl.NumberFormat().format(model.max_model_len);
  $('about').textContent = model ? `${model.id}, a context of ${length} tokens` : '';
}

function start() {
  startTheme();
  settings.start();
  api.onKeyNeeded(async (reason) => {
    const key = await askForKey(reason);
    // The list could not be had without it.
    if (key && !state.served.length) setTimeout(listModels);
    return key;
  });
  $('examples').append(...EXAMPLES.map((text) =>
    el('li', {}, el('button', { type: 'button', onclick: () => { $('input').value = text; submit(); } }, text))));

  $('composer').addEventListener('submit', (event) => { event.preventDefault(); submit(); });
  $('input').addEventListener('input', resized);
  $('input').addEventListener('keydown', (event) => {
    if (isSend(event)) {
      event.preventDefault();
      submit();
    } else if (event.key === 'ArrowUp' && $('input').value === '') {
      event.preventDefault();
      editLast();
    }
  });
  $('stop').addEventListener('click', () => { stop(); $('input').focus(); });
  $('new').addEventListener('click', fresh);
  $('export').addEventListener('click', exportChat);
  $('clear').addEventListener('click', clear);
  $('latest').addEventListener('click', () => { following = true; follow(); });
  $('menu').addEventListener('click', () => toggle('rail', 'menu', !$('rail').classList.contains('open')));
  $('tune').addEventListener('click', () => toggle('settings', 'tune', $('settings').hidden));
  $('model').addEventListener('change', () => {
    local.set('lima.model', $('model').value);
    about();
  });
  $('system').addEventListener('input', () => {
    state.chat.system = $('system').value;
    state.chat.save();
  });
  document.addEventListener('keydown', keys);
  window.addEventListener('storage', drawList);

  const [latest] = kept();
  if (latest) state.chat = latest;
  draw();
  drawList();
  resized();
  listModels().then(load.start);
}

start();
