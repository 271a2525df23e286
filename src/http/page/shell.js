// The colours, and the question for a key.

import { $, announce, icon } from './dom.js';
import { local } from './storage.js';

const THEMES = ['auto', 'light', 'dark'];
const SPOKEN = { auto: 'as the system', light: 'light', dark: 'dark' };

function show(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Colours: ${SPOKEN[theme]}`;
  $('theme').replaceChildren(icon(theme));
  $('theme').setAttribute('aria-label', label);
  $('theme').title = label;
}

/** The switch between the system's colours, light and dark. */
export function startTheme() {
  show(document.documentElement.dataset.theme ?? 'auto');
  $('theme').addEventListener('click', () => {
    const now = document.documentElement.dataset.theme ?? 'auto';
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    show(next);
    announce(`Colours: ${SPOKEN[next]}.`);
    local.set('lima.theme', next);
  });
}

let asking = null;

/** Asks for a key: what was entered, or null. Who asks meanwhile gets the same answer. */
export function askForKey(reason) {
  asking ??= new Promise((resolve) => {
    const dialog = $('key');
    $('key-reason').textContent = reason;
    $('key-input').value = '';
    dialog.returnValue = '';
    $('key-cancel').onclick = () => dialog.close();
    dialog.addEventListener('close', () => {
      asking = null;
      const entered = $('key-input').value.trim();
      $('key-input').value = '';
      resolve(dialog.returnValue === 'ok' && entered ? entered : null);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
