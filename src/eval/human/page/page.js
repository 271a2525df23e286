// Shows two answers, sends what was decided, and shows the next two. All text goes into text nodes: nothing that a model
// says is markup.

const at = (id) => document.getElementById(id);
const screens = ['begin', 'judge', 'done'];
let person = localStorage.getItem('person') ?? '';
let item = null;
let busy = false;

function show(screen) {
  for (const name of screens) at(name).hidden = name !== screen;
}

async function ask(path, body) {
  const answer = await fetch(path, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ person, ...body }),
  });
  const text = await answer.text();
  if (!answer.ok) {
    let reason = text;
    try { reason = JSON.parse(text).error; } catch { /* not ours */ }
    throw new Error(reason);
  }
  return JSON.parse(text);
}

/** One at a time; what goes wrong is shown, and nothing is lost. */
async function doing(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    at('error').hidden = true;
  } catch (error) {
    at('error').textContent = `Not saved: ${error.message}`;
    at('error').hidden = false;
  } finally {
    busy = false;
  }
}

function fill(side, answers, turns) {
  const box = at(side).querySelector('div');
  box.replaceChildren();
  answers.forEach((answer, i) => {
    if (i > 0) {
      const turn = document.createElement('span');
      turn.className = 'turn';
      turn.textContent = turns[i];
      box.append(turn);
    }
    box.append(answer);
  });
  at(side).scrollTop = 0;
}

async function next() {
  const { item: found, total } = await ask('next', {});
  item = found;
  if (!found) {
    at('sum').textContent = `${total} decisions are saved.`;
    show('done');
    return;
  }
  at('asked').textContent = found.turns[0];
  fill('left', found.left, found.turns);
  fill('right', found.right, found.turns);
  at('count').textContent = `${found.done + 1} of ${found.total}`;
  const bar = at('bar');
  bar.setAttribute('aria-valuemax', found.total);
  bar.setAttribute('aria-valuenow', found.done);
  bar.firstElementChild.style.width = `${(100 * found.done) / found.total}%`;
  at('undo').disabled = found.done === 0;
  show('judge');
}

const decide = (choice) => doing(async () => {
  if (!item) return;
  await ask('decide', { id: item.id, choice });
  await next();
});

const undo = () => doing(async () => {
  await ask('undo', {});
  await next();
});

at('who').addEventListener('submit', (event) => {
  event.preventDefault();
  doing(async () => {
    person = at('name').value.trim();
    await next();
    localStorage.setItem('person', person);
  });
});
for (const button of document.querySelectorAll('[data-choice]')) {
  button.addEventListener('click', () => decide(button.dataset.choice));
}
at('undo').addEventListener('click', undo);
at('back').addEventListener('click', undo);
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !at('begin').hidden) return;
  const choice = { 1: 'left', 2: 'neither', 3: 'right' }[event.key];
  if (choice && !at('judge').hidden) decide(choice);
  if (event.key.toLowerCase() === 'u') undo();
});

at('name').value = person;
show('begin');
at('name').focus();
