// Elements by function. Text becomes text nodes; nothing here, or anywhere in this page, parses HTML.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`on…`: listeners; false, null and undefined: left out) and children. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

const SVG = 'http://www.w3.org/2000/svg';

/** An element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One of the page's icons. */
export const icon = (name) => svg('svg', { 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));

/** A button that shows an icon. */
export function iconButton(name, label, onclick, more = {}) {
  return el('button', { type: 'button', class: 'icon', 'aria-label': label, title: label, onclick, ...more }, icon(name));
}

/** Puts text on the clipboard, also where the page's origin is not a secure one. */
export async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not allowed: the old way.
    }
  }
  const field = el('textarea', { class: 'unseen', readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  return done;
}

/** A button that copies what `text()` returns, and says so for a moment. */
export function copyButton(text, label = 'Copy') {
  const button = iconButton('copy', label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? 'check' : 'copy'));
    announce(done ? 'Copied.' : 'Copying is not allowed here.');
    setTimeout(() => button.replaceChildren(icon('copy')), 1500);
  });
  return button;
}

/** Tells those who listen to the page instead of looking at it. */
export function announce(text) {
  $('status').textContent = text;
}
