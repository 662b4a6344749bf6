// Workers: who is alive, on what, how busy.

import { get } from './api.js';
import { complain } from './dialog.js';
import { h, put, update } from './dom.js';
import { count, many, time } from './format.js';
import { repeat } from './live.js';

const LOOK = 2000;

function card(worker) {
  const running = worker.queues.reduce((sum, queue) => sum + queue.running, 0);
  const slots = worker.queues.reduce((sum, queue) => sum + queue.concurrency, 0);
  return h(
    'article',
    { class: 'panel worker', data: { key: worker.worker } },
    h('div', { class: 'line' }, h('h2', {}, worker.worker), h('span', { class: `status is-${running ? 'running' : 'queued'}` }, running ? 'busy' : 'idle')),
    h('p', { class: 'quiet' }, `version ${worker.version} · ${worker.host}, process ${worker.pid} · started `, time(worker.since)),
    h('div', { class: 'meter' }, h('span', {}, `${count(running)} of ${count(slots)} places busy`), h('span', { class: 'track' }, h('span', { class: 'fill is-running', css: { width: `${slots ? Math.min(100, (running / slots) * 100) : 0}%` } }))),
    h(
      'table',
      {},
      h('caption', { class: 'unseen' }, `Queues of ${worker.worker}`),
      h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Queue'), h('th', { scope: 'col', class: 'number' }, 'Running'), h('th', { scope: 'col', class: 'number' }, 'Taken ahead'), h('th', { scope: 'col', class: 'number' }, 'Places'))),
      h(
        'tbody',
        {},
        worker.queues.map((queue) =>
          h(
            'tr',
            {},
            h('th', { scope: 'row' }, h('a', { href: `/jobs?${new URLSearchParams({ queue: queue.queue, status: 'running' })}` }, queue.queue), queue.paused && [' ', h('span', { class: 'badge is-warn' }, 'paused')]),
            h('td', { class: 'number' }, count(queue.running)),
            h('td', { class: 'number' }, count(queue.waiting)),
            h('td', { class: 'number' }, count(queue.concurrency)),
          ),
        ),
      ),
    ),
    h('details', {}, h('summary', {}, many(worker.kinds.length, 'kind')), h('p', {}, worker.kinds.map(({ kind }) => [h('a', { class: 'tag', href: `/jobs?kind=${encodeURIComponent(kind)}` }, kind), ' ']))),
    worker.jobs.length > 0 &&
      h('details', {}, h('summary', {}, `Runs ${many(worker.jobs.length, 'job')}`), h('ul', { class: 'ids' }, worker.jobs.map((id) => h('li', {}, h('a', { href: `/jobs/${id}` }, h('code', {}, id)))))),
  );
}

export async function page(context) {
  const cards = h('div', { class: 'cards' });
  const total = h('p', { class: 'quiet' });
  let failed = false;
  const read = async () => {
    const { items } = await get('/v1/workers');
    update(cards, items.map(card));
    put(total, items.length ? `${many(items.length, 'worker')} said something in the last 20 seconds.` : 'No worker is alive: nothing is worked off. Start one, and it appears here within seconds.');
  };
  context.onclose(
    repeat(async () => {
      try {
        await read();
        failed = false;
      } catch (error) {
        if (!failed) complain(error);
        failed = true;
      }
    }, LOOK),
  );
  context.setKeys({ r: ['Read again', () => read().catch(complain)] });
  await read();
  return { title: 'Workers', content: [total, cards] };
}
