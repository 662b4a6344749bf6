// A list of any length of which only the rows in view are in the document.

import { h, put } from './dom.js';

/** Rows drawn beyond each end of the view. */
const BEYOND = 12;
/** So many rows before the end more are asked for. */
const AHEAD = 150;

export class Rows {
  #items = [];
  #drawn = new Map();
  #asking = false;
  #onmore;
  #draw;
  #body;
  #table;
  #stop;

  /**
   * `label` names the list; `columns` are its heads; `draw(item)` makes a row's cells; `onmore()` loads more, until it resolves
   * to false. An item's `id` tells it from others.
   */
  constructor({ label, columns, draw, onmore }) {
    this.#draw = draw;
    this.#onmore = onmore;
    this.#body = h('div', { class: 'body', role: 'rowgroup' });
    const heads = columns.map(([name, text]) => h('span', { class: name, role: 'columnheader' }, text));
    this.#table = h('div', { class: 'rows', role: 'table', 'aria-label': label }, h('div', { role: 'rowgroup' }, h('div', { class: 'row heads', role: 'row', 'aria-rowindex': '1' }, heads)), this.#body);
    let waits = false;
    const look = () => {
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => {
        waits = false;
        this.render();
      });
    };
    addEventListener('scroll', look, { passive: true });
    addEventListener('resize', look, { passive: true });
    this.#stop = () => {
      removeEventListener('scroll', look);
      removeEventListener('resize', look);
    };
  }

  get element() {
    return this.#table;
  }

  get items() {
    return this.#items;
  }

  close() {
    this.#stop();
  }

  /** Shows these items. Rows whose item is the same object are kept as they are. */
  set(items) {
    this.#items = items;
    this.render();
  }

  /** Draws the rows of these items again. */
  redraw() {
    this.#drawn.forEach((known) => known.row.remove());
    this.#drawn.clear();
    this.render();
  }

  render() {
    if (!this.#table.isConnected) return;
    const height = Number.parseFloat(getComputedStyle(this.#table).getPropertyValue('--row-height')) || 36;
    const top = this.#body.getBoundingClientRect().top;
    const count = this.#items.length;
    const first = Math.max(0, Math.floor(-top / height) - BEYOND);
    const last = Math.min(count, Math.ceil((innerHeight - top) / height) + BEYOND);
    this.#body.style.setProperty('height', `${count * height}px`);
    this.#table.setAttribute('aria-rowcount', String(count + 1));
    const focused = document.activeElement?.closest?.('.row')?.dataset.id;
    const wanted = new Set();
    for (let index = first; index < last; index += 1) wanted.add(this.#place(index, height));
    for (const [id, known] of this.#drawn) {
      if (wanted.has(id)) continue;
      // Who has the focus keeps it, also out of view.
      const index = id === focused ? this.#items.findIndex((item) => item.id === id) : -1;
      if (index >= 0) this.#place(index, height);
      else {
        known.row.remove();
        this.#drawn.delete(id);
      }
    }
    if (last > count - AHEAD) this.#more();
  }

  #place(index, height) {
    const item = this.#items[index];
    let known = this.#drawn.get(item.id);
    if (!known || known.item !== item) {
      const focus = known?.row.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
      const row = known?.row ?? h('div', { class: 'row', role: 'row', data: { id: item.id } });
      put(row, this.#draw(item));
      if (focus) row.querySelector(`[data-focus="${focus}"]`)?.focus({ preventScroll: true });
      known = { row, item };
      this.#drawn.set(item.id, known);
    }
    if (known.index !== index || known.height !== height) {
      known.row.style.setProperty('transform', `translateY(${index * height}px)`);
      known.row.setAttribute('aria-rowindex', String(index + 2));
      // The order in the document is the order of the list, which is what the tab key follows.
      let next = this.#body.firstChild;
      while (next && Number(next.getAttribute('aria-rowindex')) < index + 2) next = next.nextSibling;
      if (next !== known.row && known.row.nextSibling !== next) this.#body.insertBefore(known.row, next);
      else if (!known.row.isConnected) this.#body.append(known.row);
      known.index = index;
      known.height = height;
    }
    return item.id;
  }

  async #more() {
    if (this.#asking || !this.#onmore) return;
    this.#asking = true;
    let more;
    try {
      more = await this.#onmore();
    } finally {
      this.#asking = false;
    }
    if (more) this.render();
  }

  /** Moves the focus by so many rows from the one that has it, or into the list. */
  move(by) {
    const id = document.activeElement?.closest?.('.row')?.dataset.id;
    const at = id ? this.#items.findIndex((item) => item.id === id) : -1;
    const height = Number.parseFloat(getComputedStyle(this.#table).getPropertyValue('--row-height')) || 36;
    const visible = Math.max(0, Math.ceil((90 - this.#body.getBoundingClientRect().top) / height));
    const index = Math.min(this.#items.length - 1, Math.max(0, at < 0 ? visible : at + by));
    const item = this.#items[index];
    if (!item) return;
    const y = this.#body.getBoundingClientRect().top + index * height;
    if (y < 110) scrollBy(0, y - 110);
    else if (y + height > innerHeight - 20) scrollBy(0, y + height - innerHeight + 20);
    this.render();
    this.#drawn.get(item.id)?.row.querySelector('a')?.focus({ preventScroll: true });
  }

  /** The item of the row that has the focus. */
  get current() {
    const id = document.activeElement?.closest?.('.row')?.dataset.id;
    return this.#items.find((item) => item.id === id);
  }
}
