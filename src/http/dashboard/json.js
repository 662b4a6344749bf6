// JSON for people: a tree that opens and closes.

import { button, h } from './dom.js';
import { shownName } from './exact.js';

/** Members of one object or array that are shown at first, and more with each press. */
const STEP = 100;
/** Levels that are open at first, and levels that open at all: what is deeper is text. */
const [OPEN, DEEP] = [3, 30];
/** Members in all that one drawing, or one press, makes about. */
const MOST = 1000;

function branch(name, part, level, room) {
  const entries = part.entries();
  const [open, close] = part.type === 'array' ? '[]' : '{}';
  if (!entries.length) return h('div', { class: 'leaf' }, name, open + close);
  const inside = h('div', { class: 'inside' });
  let shown = 0;
  const more = button('', () => grow());
  const grow = (left = { members: MOST }) => {
    more.remove();
    const next = entries.slice(shown, shown + STEP);
    left.members -= next.length;
    for (const [key, item] of next) inside.append(node(key, item, level + 1, left));
    shown += next.length;
    if (shown < entries.length) {
      more.textContent = `${entries.length - shown} more`;
      inside.append(more);
    }
  };
  const isOpen = level < OPEN && Math.min(entries.length, STEP) <= room.members;
  const details = h('details', { open: isOpen }, h('summary', {}, name, `${open}${entries.length}${close}`), inside);
  // What is closed is not built before it is opened.
  if (isOpen) grow(room);
  else details.addEventListener('toggle', () => grow(), { once: true });
  return details;
}

function node(key, part, level, room) {
  const name = key === undefined ? null : [h('span', { class: 'json-key' }, shownName(key)), ': '];
  return part.isBranch && level < DEEP ? branch(name, part, level, room) : h('div', { class: 'leaf' }, name, h('span', { class: `json-${part.type}` }, part.line));
}

/** JSON as a tree, with a button that copies it. */
export function json(label, part) {
  const copy = button('Copy', async () => {
    await navigator.clipboard?.writeText(part.pretty);
    copy.textContent = 'Copied';
    setTimeout(() => (copy.textContent = 'Copy'), 1500);
  });
  copy.setAttribute('aria-label', `Copy ${label}`);
  return h('div', { class: 'json', role: 'group', 'aria-label': label }, navigator.clipboard && copy, node(undefined, part, 0, { members: MOST }));
}
