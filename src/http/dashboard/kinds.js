// Kinds: what workers have announced, with what it takes and returns.

import { getKinds, session } from './api.js';
import { h } from './dom.js';
import { duration, time } from './format.js';
import { json } from './json.js';

function pauses({ initial, factor, max, jitter }) {
  return `${duration(initial)} × ${factor} up to ${duration(max)}, ± ${Math.round(jitter * 100)} %`;
}

function card(kind) {
  const fact = (name, value) => value !== undefined && value !== false && [h('dt', {}, name), h('dd', {}, value)];
  return h(
    'article',
    { class: 'panel', id: `kind-${kind.kind}` },
    h('div', { class: 'line' }, h('h2', {}, kind.kind), kind.workers.length === 0 && h('span', { class: 'badge is-bad' }, 'no worker'), kind.deprecated && h('span', { class: 'badge is-warn' }, 'deprecated')),
    h(
      'dl',
      { class: 'facts' },
      fact('Queue', h('a', { href: `/jobs?queue=${encodeURIComponent(kind.queue)}` }, kind.queue)),
      fact('Workers', kind.workers.length ? kind.workers.join(', ') : 'none is alive'),
      fact('Alias of', kind.alias_of),
      fact('Deprecated', kind.deprecated),
      fact('Timeout', kind.timeout !== undefined && duration(kind.timeout)),
      fact('Attempts', kind.max_attempts),
      fact('Pauses', kind.retry && pauses(kind.retry)),
      fact('Recorded', kind.private && 'neither args nor output'),
      fact('Announced', kind.announced_at && time(kind.announced_at)),
    ),
    (kind.schemas ?? []).map((schemas, index) => [
      schemas.args !== undefined && h('details', {}, h('summary', {}, `Args${index ? `, version ${index + 1}` : ''}`), json(`Schema of the args of ${kind.kind}`, schemas.args)),
      schemas.output !== undefined && h('details', {}, h('summary', {}, `Output${index ? `, version ${index + 1}` : ''}`), json(`Schema of the output of ${kind.kind}`, schemas.output)),
    ]),
    h(
      'p',
      { class: 'links' },
      h('a', { href: `/jobs?kind=${encodeURIComponent(kind.kind)}` }, 'Jobs'),
      session.can('submit') && !kind.kind.startsWith('hopline.') && h('a', { href: `/submit?kind=${encodeURIComponent(kind.kind)}` }, 'Submit'),
    ),
  );
}

export async function page() {
  const { items } = await getKinds();
  const [own, inner] = [items.filter((kind) => !kind.kind.startsWith('hopline.')), items.filter((kind) => kind.kind.startsWith('hopline.'))];
  return {
    title: 'Kinds',
    content: [
      own.length === 0 && h('p', {}, 'No worker has announced a kind yet. Start one, and read this page again.'),
      h('div', { class: 'cards' }, own.map(card)),
      inner.length > 0 && h('details', { class: 'inner' }, h('summary', {}, "Hopline's own"), h('div', { class: 'cards' }, inner.map(card))),
    ],
  };
}
