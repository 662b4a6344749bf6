// Dead: jobs that failed for good, by queue and by error; replaying them, with other args too, and purging them.

import { get, getJob, session } from './api.js';
import { act } from './bulk.js';
import { complain } from './dialog.js';
import { field, h, put, select, update } from './dom.js';
import { count, many, shorten, time } from './format.js';
import { repeat } from './live.js';

const LOOK = 5000;
/** Most queues whose groups are asked for together, and groups of a queue that are drawn at first. */
const [QUEUES, GROUPS] = [20, 50];

const path = (queue, rest) => `/v1/queues/${encodeURIComponent(queue)}/dead${rest}`;

async function replay(queue, group) {
  let args;
  if (group && !group.kind?.startsWith('hopline.')) {
    // What the newest one was given is what is to be mended.
    const latest = await getJob(group.latest).catch(() => ({}));
    args = latest.args?.pretty ?? '{}';
  }
  await act({
    title: group ? 'Replay these dead jobs' : `Replay all dead jobs of ${queue}`,
    about: group ? `${group.kind ?? 'Jobs'} of ${queue} that are dead with ${group.code}. Each starts its next run.` : `Every dead job of ${queue} starts its next run.`,
    verb: 'Replay the jobs',
    rate: true,
    args,
    make: (said) => ['POST', path(queue, '/replay'), { body: { ...(group ? { fingerprint: group.fingerprint } : { all: true }), ...said } }],
  });
}

async function purge(queue, group) {
  await act({
    title: group ? 'Purge these dead jobs' : `Purge all dead jobs of ${queue}`,
    about: `${group ? `${group.kind ?? 'Jobs'} of ${queue} that are dead with ${group.code}` : `Every dead job of ${queue}`}: their messages are removed for good. They stay in the record as dead, and cannot be replayed any more.`,
    verb: 'Purge the jobs',
    danger: true,
    typed: group ? undefined : queue,
    make: (said) => ['DELETE', path(queue, ''), { query: { ...(group && { fingerprint: group.fingerprint }), ...said } }],
  });
}

function action(what, queue, group, text, label, kind) {
  return h('button', { type: 'button', class: kind, data: { act: what, queue, group: group?.fingerprint ?? '' } }, text, h('span', { class: 'unseen' }, ` ${label}`));
}

function row(queue, group, operates) {
  const jobs = `/jobs?${new URLSearchParams({ status: 'dead', queue, fingerprint: group.fingerprint })}`;
  const label = `${group.kind ?? 'jobs'} with ${group.code}`;
  return h(
    'li',
    { class: 'group', data: { key: group.fingerprint } },
    h('a', { class: 'count', href: jobs, 'aria-label': `${many(group.count, 'job')}: ${label}` }, count(group.count)),
    h(
      'div',
      { class: 'told' },
      h('p', {}, h('b', {}, group.kind ?? '(no kind)'), ' ', h('code', {}, group.code), group.reason && group.reason !== group.code && h('span', { class: 'quiet' }, ` ${group.reason}`)),
      group.message && h('p', { class: 'error', title: group.message }, shorten(group.message, 300)),
      h('p', { class: 'quiet' }, 'last ', time(group.last_at), group.count > 1 && [', first ', time(group.first_at)], ' · ', h('a', { href: `/jobs/${group.latest}` }, 'the newest'), ' · ', h('a', { href: jobs }, group.count === 1 ? 'list' : `all ${count(group.count)}`)),
    ),
    operates && h('div', { class: 'actions' }, action('replay', queue, group, 'Replay …', label), action('purge', queue, group, 'Purge …', label, 'quiet-danger')),
  );
}

export async function page(context) {
  const operates = session.can('operate');
  let chosen = context.query.get('queue') ?? '';
  const all = new Set();
  const groups = new Map();
  const list = h('div');
  const total = h('p', { class: 'total', 'aria-live': 'polite' });
  const picker = select([], chosen, {
    change: () => {
      chosen = picker.value;
      context.setQuery(chosen ? { queue: chosen } : {});
      read().catch(complain);
    },
  });

  function section(queue) {
    const found = groups.get(queue.queue) ?? [];
    const shown = all.has(queue.queue) ? found : found.slice(0, GROUPS);
    const sum = found.reduce((number, group) => number + group.count, 0);
    return h(
      'section',
      { class: 'panel dead', data: { key: queue.queue } },
      h(
        'div',
        { class: 'line' },
        h('h2', {}, queue.queue, h('span', { class: 'quiet' }, ` ${many(sum, 'job')} in ${many(found.length, 'group')}`)),
        operates && found.length > 0 && h('div', { class: 'actions' }, action('replay', queue.queue, undefined, 'Replay all …', `of ${queue.queue}`), action('purge', queue.queue, undefined, 'Purge all …', `of ${queue.queue}`, 'quiet-danger')),
      ),
      found.length === 0 && h('p', { class: 'quiet' }, 'What is dead here was purged.'),
      h('ul', { class: 'groups' }, shown.map((group) => row(queue.queue, group, operates))),
      shown.length < found.length && h('button', { type: 'button', data: { act: 'more', queue: queue.queue } }, `${count(found.length - shown.length)} more groups`),
    );
  }

  async function read() {
    const { items } = await get('/v1/queues');
    const dead = items.filter((queue) => queue.dead > 0).sort((one, other) => other.dead - one.dead);
    const options = [['', 'All queues'], ...dead.map((queue) => [queue.queue, `${queue.queue} (${count(queue.dead)})`])];
    if (chosen && !dead.some((queue) => queue.queue === chosen)) options.push([chosen, chosen]);
    update(picker, options.map(([value, text]) => h('option', { value }, text)));
    picker.value = chosen;
    const wanted = dead.filter((queue) => !chosen || queue.queue === chosen).slice(0, QUEUES);
    const found = await Promise.all(wanted.map((queue) => get(path(queue.queue, '/groups'))));
    groups.clear();
    wanted.forEach((queue, index) => groups.set(queue.queue, found[index].items));
    draw(wanted, dead);
  }

  let last = [];
  function draw(wanted, dead) {
    last = [wanted, dead];
    update(list, wanted.map(section));
    const sum = [...groups.values()].flat().reduce((number, group) => number + group.count, 0);
    const left = dead.filter((queue) => !chosen || queue.queue === chosen).length - wanted.length;
    put(total, sum ? `${many(sum, 'dead job')} can be replayed${left > 0 ? `; ${many(left, 'more queue')} below the first ${QUEUES}` : ''}` : 'Nothing is dead. Jobs that fail for good wait here until somebody replays or purges them.');
  }

  list.addEventListener('click', async (event) => {
    const { act: what, queue, group } = event.target.closest('button')?.dataset ?? {};
    if (!what) return;
    if (what === 'more') {
      all.add(queue);
      return draw(...last);
    }
    const about = group ? groups.get(queue)?.find((one) => one.fingerprint === group) : undefined;
    if (group && !about) return;
    await (what === 'replay' ? replay(queue, about) : purge(queue, about)).catch?.(complain);
    read().catch(complain);
  });
  const acted = () => read().catch(complain);
  document.addEventListener('acted', acted);
  context.onclose(() => document.removeEventListener('acted', acted));
  let failed = false;
  context.onclose(
    repeat(
      () =>
        read().then(
          () => (failed = false),
          (error) => {
            if (!failed) complain(error);
            failed = true;
          },
        ),
      LOOK,
    ),
  );
  context.setKeys({ r: ['Read again', () => read().catch(complain)] });
  await read();
  return { title: 'Dead', content: [h('div', { class: 'filters' }, h('div', { class: 'fields' }, field('Queue', picker))), total, list] };
}
