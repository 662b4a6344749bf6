// Overview: how everything stands, about once a second.

import { get } from './api.js';
import { chart } from './chart.js';
import { h, put, update } from './dom.js';
import { absolute, brief, count, duration, many, rate, status, STATUSES, time } from './format.js';
import { repeat, stream } from './live.js';

/** From a stream that is refused to the next try, in ms. */
const RETRY = 5000;
/** From one look at the server's health to the next, in ms. */
const HEALTH = 10_000;

/** Keeps `take` told of the overview: at once, and then as the server tells it. */
export async function followOverview(context, take) {
  const state = h('p', { class: 'stale', role: 'status' });
  take(await get('/v1/overview'));
  const changed = (connected, refused) => {
    put(state, connected ? '' : 'The connection is gone; what you see is from before. Trying again …');
    // If it is the session that has ended, this asks for a key.
    if (refused) get('/v1/overview').then(take, () => {});
  };
  context.onclose(stream('/v1/overview/events', { 'hopline.overview': (event) => take(JSON.parse(event.data)) }, changed, RETRY));
  return state;
}

/** Says what is missing while the server could not take a job. */
function health(context) {
  const state = h('p', { class: 'stale', role: 'status' });
  const look = async () => {
    const found = await fetch('/readyz').then((answer) => answer.json(), () => undefined);
    if (!found) return;
    const parts = ['publish', 'consume', 'control', 'record'].map((part) => `${part}: ${found[part]}`);
    put(state, found.ready ? '' : `This server cannot take jobs now. ${parts.join(' · ')}`);
  };
  context.onclose(repeat(look, HEALTH));
  look();
  return state;
}

function tile(name, value, note, href) {
  const content = [h('span', { class: 'name' }, name), h('span', { class: 'value' }, value), h('span', { class: 'note' }, note ?? '\u00a0')];
  return href ? h('a', { class: 'tile', href }, content) : h('div', { class: 'tile' }, content);
}

function tiles(seen) {
  const oldest = seen.queues.reduce((most, queue) => Math.max(most, queue.oldest_age ?? 0), 0);
  const waiting = seen.jobs.queued + seen.jobs.scheduled + seen.jobs.retrying;
  const [running, slots] = seen.workers.reduce(([sum, all], worker) => [sum + worker.running, all + worker.concurrency], [0, 0]);
  return [
    tile('Finished per second', rate(seen.service_rate), `${rate(seen.arrival_rate)} arrive`),
    tile('Mean duration', duration(seen.mean_duration), 'last minute'),
    tile('Oldest wait', oldest ? duration(oldest) : '–', 'ready and not taken', '/queues'),
    tile('Waiting', brief(waiting), `${brief(seen.jobs.queued)} queued`, '/jobs?status=scheduled,queued,retrying'),
    tile('Running', brief(Math.max(running, seen.jobs.running)), slots ? `of ${count(slots)} places` : 'no worker', '/jobs?status=running'),
    tile('Dead', brief(seen.jobs.dead), 'wait for a person', '/dead'),
    tile('Workers', count(seen.worker_count), seen.worker_count ? 'alive' : 'none is alive', '/workers'),
  ];
}

function states(jobs) {
  const most = Math.max(1, ...STATUSES.map((name) => jobs[name]));
  const row = (name) =>
    h(
      'tr',
      {},
      h('th', { scope: 'row' }, h('a', { href: `/jobs?status=${name}` }, status(name))),
      h('td', { class: 'number' }, count(jobs[name])),
      h('td', { class: 'bar' }, h('span', { class: `fill is-${name}`, css: { width: `${jobs[name] ? Math.max(1, (jobs[name] / most) * 100) : 0}%` } })),
    );
  return STATUSES.map(row);
}

export function queueState(queue) {
  if (queue.paused) return h('span', { class: 'badge is-warn' }, 'paused');
  if (queue.ready > 0 && queue.consumers === 0) return h('span', { class: 'badge is-bad' }, 'no worker');
  return null;
}

function queues(items) {
  const row = (queue) =>
    h(
      'tr',
      { data: { key: queue.queue } },
      h('th', { scope: 'row' }, h('a', { href: `/jobs?queue=${encodeURIComponent(queue.queue)}` }, queue.queue), ' ', queueState(queue)),
      h('td', { class: 'number' }, queue.ready === undefined ? '–' : count(queue.ready)),
      h('td', { class: 'number' }, count(queue.running)),
      h('td', { class: 'number' }, queue.oldest_age ? duration(queue.oldest_age) : '–'),
      h('td', { class: 'number wide' }, rate(queue.arrival_rate)),
      h('td', { class: 'number' }, rate(queue.service_rate)),
      h('td', { class: 'number' }, drain(queue)),
      h('td', { class: 'number' }, queue.dead ? h('a', { href: `/dead?queue=${encodeURIComponent(queue.queue)}` }, count(queue.dead)) : '0'),
    );
  return items.map(row);
}

export function drain(queue) {
  if (!queue.ready) return '–';
  return queue.time_to_drain === undefined ? 'never' : duration(queue.time_to_drain);
}

function workers(seen) {
  const row = (worker) =>
    h(
      'tr',
      { data: { key: worker.worker } },
      h('th', { scope: 'row' }, worker.worker),
      h('td', { class: 'number' }, `${worker.running} / ${worker.concurrency}`),
      h('td', { class: 'bar' }, h('span', { class: 'fill is-running', css: { width: `${worker.concurrency ? (worker.running / worker.concurrency) * 100 : 0}%` } })),
      h('td', {}, time(worker.since)),
    );
  return seen.workers.map(row);
}

export async function page(context) {
  const box = { tiles: h('div', { class: 'tiles' }), states: h('tbody'), queues: h('tbody'), workers: h('tbody'), none: h('p', { class: 'quiet' }) };
  const through = chart('Attempts per second, last ten minutes');
  const took = chart('Mean duration of attempts, last ten minutes');
  const take = (seen) => {
    update(box.tiles, tiles(seen));
    update(box.states, states(seen.jobs));
    update(box.queues, queues(seen.queues));
    update(box.workers, workers(seen));
    put(box.none, seen.worker_count > seen.workers.length ? `And ${count(seen.worker_count - seen.workers.length)} more.` : seen.worker_count ? '' : 'No worker is alive: nothing is worked off.');
    const { history } = seen;
    const per = (values) => values.map((value) => value / history.seconds);
    const end = Date.parse(seen.at);
    const when = (index) => absolute(new Date(end - (history.ended.length - index) * history.seconds * 1000)).slice(11);
    const failed = per(history.failed);
    const well = per(history.ended).map((value, index) => value - failed[index]);
    through.draw(
      [
        { name: 'succeeded', kind: 'bar', mark: 'succeeded', values: well },
        { name: 'failed', kind: 'bar', mark: 'dead', values: failed },
        { name: 'arrived', kind: 'line', mark: 'queued', values: per(history.arrived) },
      ],
      rate,
      when,
      `${many(history.ended.reduce((sum, value) => sum + value, 0), 'attempt')} ended, ${count(history.failed.reduce((sum, value) => sum + value, 0))} of them failed; ${rate(seen.service_rate)} per second now`,
    );
    took.draw([{ name: 'mean', kind: 'line', mark: 'running', values: history.mean_duration }], duration, when, `${duration(seen.mean_duration)} now`);
  };
  const stale = await followOverview(context, take);
  const heads = ['Queue', 'Ready', 'Running', 'Oldest', 'In/s', 'Out/s', 'Drains in', 'Dead'];
  return {
    title: 'Overview',
    content: [
      health(context),
      stale,
      box.tiles,
      h(
        'div',
        { class: 'columns' },
        h('section', { class: 'panel' }, h('h2', {}, 'Throughput'), through.element),
        h('section', { class: 'panel' }, h('h2', {}, 'Latency'), took.element),
      ),
      h(
        'section',
        { class: 'panel' },
        h('h2', {}, 'Queues'),
        scroller('Queues', h('table', {}, h('thead', {}, h('tr', {}, heads.map((name, index) => h('th', { scope: 'col', class: `${index ? 'number' : ''}${name === 'In/s' ? ' wide' : ''}` }, name)))), box.queues)),
      ),
      h(
        'div',
        { class: 'columns' },
        h('section', { class: 'panel' }, h('h2', {}, 'Jobs by status'), h('table', { class: 'states' }, h('caption', { class: 'unseen' }, 'Jobs by status'), box.states)),
        h(
          'section',
          { class: 'panel' },
          h('h2', {}, 'Workers'),
          scroller('Workers', h('table', {}, h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Worker'), h('th', { scope: 'col', class: 'number' }, 'Busy'), h('th', { scope: 'col' }, h('span', { class: 'unseen' }, 'Share')), h('th', { scope: 'col' }, 'Started'))), box.workers)),
          box.none,
        ),
      ),
    ],
  };
}

/** A wide table that scrolls by itself, by keyboard too. */
export function scroller(label, table) {
  return h('div', { class: 'scroll', role: 'region', 'aria-label': label, tabindex: '0' }, table);
}
