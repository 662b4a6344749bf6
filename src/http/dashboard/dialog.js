// Dialogs and notices. Dialogs are the browser's own: they keep the focus, end with Escape, and give the focus back.

import { button, field, h, put, say } from './dom.js';

function open(title, content, foot, onclose) {
  const heading = h('h2', { id: 'dialog-title', tabindex: '-1' }, title);
  const dialog = h('dialog', { 'aria-labelledby': 'dialog-title' }, h('form', { method: 'dialog' }, heading, content, h('div', { class: 'foot' }, foot)));
  const before = document.activeElement;
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
    onclose?.(dialog.returnValue);
  });
  // A click beside it.
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close(''));
  document.body.append(dialog);
  dialog.showModal();
  (dialog.querySelector('[data-first]') ?? heading).focus();
  return dialog;
}

/** Shows something. */
export function show(title, ...content) {
  return open(title, content, h('button', { value: '', class: 'primary' }, 'Close'));
}

/**
 * Asks before something is done. `typed`: what has to be typed for it; `act`: does it, and may throw. Resolves to what `act`
 * returned, or to nothing if it was not done.
 */
export function ask({ title, content, verb, danger, typed, act, ready = true }) {
  return new Promise((resolve) => {
    const wrong = h('p', { class: 'wrong', role: 'alert' });
    let result;
    const does = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, verb);
    const word = typed && h('input', { autocomplete: 'off', spellcheck: 'false', data: { first: '' } });
    const check = () => (does.disabled = !(typeof ready === 'function' ? ready() : ready) || (word && word.value !== typed));
    word?.addEventListener('input', check);
    const dialog = open(
      title,
      [content, word && field(`Type ${typed} to go on`, word), wrong],
      [button('Back', () => dialog.close('')), does],
      () => resolve(result),
    );
    check();
    dialog.recheck = check;
    dialog.querySelector('form').addEventListener('submit', async (event) => {
      event.preventDefault();
      if (does.disabled) return;
      does.disabled = true;
      put(wrong);
      try {
        result = (await act()) ?? true;
        dialog.close();
      } catch (error) {
        put(wrong, error.text ?? error.message);
        check();
      }
    });
    content?.ondialog?.(dialog);
  });
}

/** A notice that stays for a while, or until it is dismissed. Its `set` changes what it says. */
export function notice(content, { wrong = false, stay = 8000 } = {}) {
  const text = h('div', { class: 'text' }, content);
  const box = h('div', { class: wrong ? 'notice is-wrong' : 'notice' }, text, button('×', () => box.remove(), { 'aria-label': 'Dismiss' }));
  const all = document.getElementById('notices');
  all.append(box);
  while (all.children.length > 4) all.firstChild.remove();
  say(box.querySelector('.text').textContent);
  let timer = stay && setTimeout(() => box.remove(), stay);
  return {
    set(next, last) {
      put(text, next);
      clearTimeout(timer);
      if (last) {
        say(text.textContent);
        timer = setTimeout(() => box.remove(), 12_000);
      }
    },
    get isGone() {
      return !box.isConnected;
    },
  };
}

/** Says what went wrong. */
export function complain(error) {
  if (error.name !== 'AbortError') notice(error.text ?? String(error), { wrong: true, stay: 15_000 });
}
