// Small charts of the last minutes, as SVG. What they show is said in words, too.

import { h, put, svg } from './dom.js';

const [WIDTH, HEIGHT] = [600, 120];

/** A number at least `most` that is good as the end of an axis. */
function roof(most) {
  if (most <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * size).find((end) => end >= most);
}

/**
 * A chart. `series` are `{ name, kind: 'bar' | 'line', values, mark }`: bars are stacked; `null` is a gap. `text(value)` says a
 * value, `when(index)` the time of one.
 */
export function chart(label) {
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  const top = h('span', { class: 'top' });
  const reading = h('figcaption', {});
  const cursor = svg('line', { class: 'cursor', y1: '0', y2: String(HEIGHT), visibility: 'hidden' });
  let last;
  let at;
  const read = () => {
    if (!last) return;
    const index = at ?? last.length - 1;
    cursor.setAttribute('visibility', at === undefined ? 'hidden' : 'visible');
    const x = String(((index + 0.5) * WIDTH) / last.length);
    cursor.setAttribute('x1', x);
    cursor.setAttribute('x2', x);
    const parts = last.series.map((one) => h('span', { class: `mark is-${one.mark}` }, `${one.name} ${one.values[index] === null ? '–' : last.text(one.values[index])}`));
    put(reading, h('span', { class: 'quiet' }, at === undefined ? 'now' : last.when(index)), ' ', parts);
  };
  drawing.addEventListener('pointermove', (event) => {
    const box = drawing.getBoundingClientRect();
    at = last && Math.min(last.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * last.length)));
    read();
  });
  drawing.addEventListener('pointerleave', () => {
    at = undefined;
    read();
  });
  return {
    element: h('figure', { class: 'chart' }, h('div', { class: 'plot' }, top, drawing), reading),
    draw(series, text, when, said) {
      const length = series[0].values.length;
      last = { series, text, when, length };
      const stacks = Array.from({ length }, (_, index) => series.filter((one) => one.kind === 'bar').reduce((sum, one) => sum + (one.values[index] ?? 0), 0));
      const lines = series.filter((one) => one.kind === 'line').flatMap((one) => one.values.filter((value) => value !== null));
      const end = roof(Math.max(0, ...stacks, ...lines));
      const y = (value) => HEIGHT - (value / end) * HEIGHT;
      const step = WIDTH / length;
      const base = new Array(length).fill(0);
      const shapes = series.map((one) => {
        if (one.kind === 'bar') {
          const path = one.values.map((value, index) => {
            if (!value) return '';
            const low = base[index];
            base[index] += value;
            return `M${(index * step).toFixed(1)} ${y(low).toFixed(1)}V${y(base[index]).toFixed(1)}h${(step * 0.82).toFixed(2)}V${y(low).toFixed(1)}Z`;
          });
          return svg('path', { class: `fill is-${one.mark}`, d: path.join('') });
        }
        let pen = false;
        const path = one.values.map((value, index) => {
          if (value === null) {
            pen = false;
            return '';
          }
          const command = `${pen ? 'L' : 'M'}${((index + 0.5) * step).toFixed(1)} ${y(value).toFixed(1)}${pen ? '' : 'h.01'}`;
          pen = true;
          return command;
        });
        return svg('path', { class: `stroke is-${one.mark}`, d: path.join('') });
      });
      put(drawing, [0.5, 1].map((part) => svg('line', { class: 'grid', x1: '0', x2: String(WIDTH), y1: String(HEIGHT * (1 - part)), y2: String(HEIGHT * (1 - part)) })), shapes, cursor);
      drawing.setAttribute('aria-label', `${label}: ${said}`);
      put(top, text(end));
      read();
    },
  };
}
