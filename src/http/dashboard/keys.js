// Keyboard shortcuts: single keys, which can be switched off, as speech input and slips of the hand would trigger them.

import { h } from './dom.js';
import { show } from './dialog.js';

/** The shortcuts of the page that is shown: `{ key: [text, act] }`. */
let ofPage = {};
let pending = '';
let forget;

export const PAGES = { o: '/', j: '/jobs', q: '/queues', d: '/dead', w: '/workers', k: '/kinds', s: '/submit' };
const NAMES = { o: 'Overview', j: 'Jobs', q: 'Queues', d: 'Dead', w: 'Workers', k: 'Kinds', s: 'Submit' };

function areOff() {
  try {
    return localStorage.getItem('keys') === 'off';
  } catch {
    return false;
  }
}

/** Makes these the shortcuts of the page. */
export function setKeys(keys) {
  ofPage = keys ?? {};
}

/** Listens. `everywhere`: shortcuts of all pages, as `setKeys` takes them; `go`: shows a page. */
export function listen(everywhere, go) {
  document.addEventListener('keydown', (event) => {
    const within = event.target.closest?.('input, textarea, select, dialog, [contenteditable]');
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || within || areOff()) return;
    if (pending === 'g') {
      pending = '';
      const page = PAGES[event.key];
      if (page) {
        event.preventDefault();
        go(page);
      }
      return;
    }
    if (event.key === 'g') {
      pending = 'g';
      clearTimeout(forget);
      forget = setTimeout(() => (pending = ''), 1500);
      return;
    }
    const shortcut = ofPage[event.key] ?? everywhere[event.key];
    if (shortcut) {
      event.preventDefault();
      shortcut[1](event);
    }
  });
}

/** Shows what keys do. */
export function help(everywhere) {
  const rows = (pairs) => pairs.map(([key, text]) => h('tr', {}, h('td', {}, key.split(' ').map((one) => h('kbd', {}, one))), h('td', {}, text)));
  const list = (keys) => Object.entries(keys).map(([key, [text]]) => [key, text]);
  const table = (title, pairs) => pairs.length > 0 && h('table', { class: 'keys' }, h('caption', {}, title), h('tbody', {}, rows(pairs)));
  const enabled = h('input', {
    type: 'checkbox',
    id: 'keys-on',
    checked: !areOff(),
    on: {
      change: () => {
        try {
          localStorage.setItem('keys', enabled.checked ? 'on' : 'off');
        } catch {
          // Forgotten with the page.
        }
      },
    },
  });
  show(
    'Keyboard shortcuts',
    h(
      'div',
      { class: 'columns' },
      table('On this page', list(ofPage)),
      table('Everywhere', list(everywhere)),
      table('Pages', Object.entries(NAMES).map(([key, name]) => [`g ${key}`, name])),
    ),
    h('p', { class: 'check' }, enabled, h('label', { for: 'keys-on' }, 'Single keys do this')),
  );
}
