// Queues: how full they are, how fast they empty; pausing and purging them.

import { call, session } from './api.js';
import { act } from './bulk.js';
import { complain, notice } from './dialog.js';
import { h, put, update } from './dom.js';
import { count, duration, rate, time } from './format.js';
import { drain, followOverview, queueState, scroller } from './overview.js';

const HEADS = [
  ['Queue', ''],
  ['Ready', 'number'],
  ['Running', 'number'],
  ['Scheduled', 'number wide'],
  ['Retrying', 'number wide'],
  ['Dead', 'number'],
  ['Oldest', 'number'],
  ['In/s', 'number'],
  ['Out/s', 'number'],
  ['Mean', 'number'],
  ['Drains in', 'number'],
  ['Workers', 'number'],
];

const link = (queue, state, number) => (number ? h('a', { href: `/jobs?${new URLSearchParams({ queue, status: state })}` }, count(number)) : '0');

function row(queue, operates) {
  const name = queue.queue;
  const workers = queue.workers.length;
  return h(
    'tr',
    { data: { key: name } },
    h(
      'th',
      { scope: 'row' },
      h('a', { href: `/jobs?queue=${encodeURIComponent(name)}` }, name),
      ' ',
      queueState(queue),
      queue.paused && h('span', { class: 'hint' }, 'since ', time(queue.paused_at), queue.paused_by && ` by ${queue.paused_by}`),
    ),
    h('td', { class: 'number' }, queue.ready === undefined ? '–' : count(queue.ready)),
    h('td', { class: 'number' }, link(name, 'running', queue.running)),
    h('td', { class: 'number wide' }, link(name, 'scheduled', queue.scheduled)),
    h('td', { class: 'number wide' }, link(name, 'retrying', queue.retrying)),
    h('td', { class: 'number' }, queue.dead ? h('a', { href: `/dead?queue=${encodeURIComponent(name)}` }, count(queue.dead)) : '0'),
    h('td', { class: 'number' }, queue.oldest_age ? duration(queue.oldest_age) : '–'),
    h('td', { class: 'number' }, rate(queue.arrival_rate)),
    h('td', { class: 'number' }, rate(queue.service_rate)),
    h('td', { class: 'number' }, duration(queue.mean_duration)),
    h('td', { class: 'number' }, drain(queue)),
    h('td', { class: 'number', title: queue.suggested_replicas ? `${queue.suggested_replicas} keep up and empty it in a minute` : undefined }, count(workers), queue.suggested_replicas > workers && h('span', { class: 'quiet' }, ` of ${queue.suggested_replicas}`)),
    operates &&
      h(
        'td',
        { class: 'acts' },
        h('button', { type: 'button', data: { act: queue.paused ? 'resume' : 'pause', queue: name } }, queue.paused ? 'Resume' : 'Pause', h('span', { class: 'unseen' }, ` ${name}`)),
        h('button', { type: 'button', class: 'quiet-danger', data: { act: 'purge', queue: name } }, 'Purge', h('span', { class: 'unseen' }, ` ${name}`)),
      ),
  );
}

async function purge(name) {
  await act({
    title: `Purge ${name}`,
    about: `Every job that waits in ${name} now ends: cancelled, reason purged. What workers have taken, and what is delayed or waits for its next attempt, is not touched. Jobs that are queued there, as the record has them:`,
    verb: 'Purge the queue',
    danger: true,
    typed: name,
    // The broker may have what the record has not heard of.
    always: true,
    make: (said) => ['DELETE', `/v1/queues/${encodeURIComponent(name)}/jobs`, { query: said }],
    // The call has no dry run of its own.
    countBy: ['POST', '/v1/jobs/cancel', { body: { filter: { queue: name, status: 'queued' } } }],
  });
}

export async function page(context) {
  const operates = session.can('operate');
  const body = h('tbody');
  const none = h('p', { class: 'quiet' });
  let last;
  const take = (seen) => {
    last = seen;
    update(body, seen.queues.map((queue) => row(queue, operates)));
    put(none, seen.queues.length ? '' : 'There is no queue yet: a worker declares those of its kinds.');
  };
  body.addEventListener('click', async (event) => {
    const { act: what, queue } = event.target.closest('button')?.dataset ?? {};
    if (!what) return;
    if (what === 'purge') return purge(queue);
    try {
      await call('POST', `/v1/queues/${encodeURIComponent(queue)}/${what}`);
      notice(what === 'pause' ? `${queue} is paused: workers take nothing more from it.` : `${queue} goes on.`);
      const item = last.queues.find((one) => one.queue === queue);
      if (item) item.paused = what === 'pause';
      take(last);
    } catch (error) {
      complain(error);
    }
  });
  const stale = await followOverview(context, take);
  return {
    title: 'Queues',
    content: [
      stale,
      h(
        'section',
        { class: 'panel' },
        scroller('Queues', h('table', {}, h('thead', {}, h('tr', {}, HEADS.map(([name, kind]) => h('th', { scope: 'col', class: kind }, name)), operates && h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Actions')))), body)),
        none,
      ),
      h('p', { class: 'quiet' }, 'Rates are of the last minute. Dead jobs of a queue, and what else has ended, are not in it any more.'),
    ],
  };
}
