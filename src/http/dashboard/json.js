// JSON for people: a tree that opens and closes, and text with two spaces. Numbers keep the digits that they came with.

import { Exact } from './api.js';
import { button, h } from './dom.js';

/** Members of one object or array that are shown at first, and more with each press. */
const STEP = 100;
/** Levels that are open at first. */
const OPEN = 3;

const scalar = (value) => {
  if (value instanceof Exact) return ['number', value.source];
  if (value === null) return ['null', 'null'];
  return [typeof value, JSON.stringify(value)];
};

const isBranch = (value) => value !== null && typeof value === 'object' && !(value instanceof Exact);

/** JSON as text. */
export function pretty(value, indent = '') {
  if (!isBranch(value)) return scalar(value)[1];
  const inner = `${indent}  `;
  const parts = Array.isArray(value)
    ? value.map((item) => inner + pretty(item, inner))
    : Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${pretty(item, inner)}`);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  return parts.length ? `${open}\n${parts.join(',\n')}\n${indent}${close}` : open + close;
}

function leaf(name, value) {
  const [type, text] = scalar(value);
  return h('div', { class: 'leaf' }, name, h('span', { class: `json-${type}` }, text));
}

function branch(name, value, level) {
  const entries = Array.isArray(value) ? value.map((item, index) => [index, item]) : Object.entries(value);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  if (!entries.length) return h('div', { class: 'leaf' }, name, open + close);
  const inside = h('div', { class: 'inside' });
  let shown = 0;
  const more = button('', () => grow());
  const grow = () => {
    more.remove();
    for (const [key, item] of entries.slice(shown, shown + STEP)) inside.append(node(key, item, level + 1));
    shown = Math.min(shown + STEP, entries.length);
    if (shown < entries.length) {
      more.textContent = `${entries.length - shown} more`;
      inside.append(more);
    }
  };
  const details = h('details', { open: level < OPEN }, h('summary', {}, name, `${open}${entries.length}${close}`), inside);
  // What is closed is not built before it is opened.
  if (level < OPEN) grow();
  else details.addEventListener('toggle', grow, { once: true });
  return details;
}

function node(key, value, level) {
  const name = key === undefined ? null : [h('span', { class: 'json-key' }, String(key)), ': '];
  return isBranch(value) ? branch(name, value, level) : leaf(name, value);
}

/** JSON as a tree, with a button that copies it. */
export function json(label, value) {
  const copy = button('Copy', async () => {
    await navigator.clipboard?.writeText(pretty(value));
    copy.textContent = 'Copied';
    setTimeout(() => (copy.textContent = 'Copy'), 1500);
  });
  copy.setAttribute('aria-label', `Copy ${label}`);
  return h('div', { class: 'json', role: 'group', 'aria-label': label }, navigator.clipboard && copy, node(undefined, value, 0));
}
