// Jobs: a list by filters, of any length; what is chosen, or all that fits, can be cancelled or replayed.

import { get, session } from './api.js';
import { act } from './bulk.js';
import { complain } from './dialog.js';
import { button, field, h, put, say, select } from './dom.js';
import { between, brief, count, duration, FINAL, isId, many, shorten, status, STATUSES, time } from './format.js';
import { isLive, repeat } from './live.js';
import { Rows } from './rows.js';

/** Jobs on the first page, on further ones, and ms between looks at what is new. */
const [FIRST, NEXT, LOOK] = [100, 500, 3000];
const SINCE = { '15m': 900, '1h': 3600, '6h': 21_600, '1d': 86_400, '7d': 604_800 };
const SINCE_TEXT = [['', 'Any time'], ['15m', 'Last 15 minutes'], ['1h', 'Last hour'], ['6h', 'Last 6 hours'], ['1d', 'Last day'], ['7d', 'Last 7 days'], ['range', 'From … to …']];

/** The filter that an address says; `failed` stands for what went wrong at least once and has not ended well. */
function filterOf(query) {
  const named = (query.get('status') ?? '').split(',').flatMap((name) => (name === 'failed' ? ['retrying', 'dead'] : [name]));
  const filter = { status: STATUSES.filter((name) => named.includes(name)) };
  for (const name of ['queue', 'kind', 'tag', 'q', 'since', 'from', 'to', 'fingerprint']) filter[name] = query.get(name) ?? '';
  if (!Object.hasOwn(SINCE, filter.since)) filter.since = '';
  return filter;
}

function queryOf(filter) {
  const query = {};
  if (filter.status.length) query.status = filter.status.join(',');
  for (const name of ['queue', 'kind', 'tag', 'q', 'since', 'from', 'to', 'fingerprint']) if (filter[name]) query[name] = filter[name];
  return query;
}

/** The filter as the interface takes it. A span of time is reckoned from `now`. */
function asked(filter, now) {
  const { since, status: states, ...query } = filter;
  if (states.length) query.status = states.join(',');
  if (since) query.from = new Date(now - SINCE[since] * 1000).toISOString();
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value));
}

function words(filter) {
  const parts = [];
  if (filter.status.length) parts.push(`status ${filter.status.join(' or ')}`);
  for (const [name, text] of [['queue', 'queue'], ['kind', 'kind'], ['tag', 'tag'], ['q', 'error text'], ['fingerprint', 'error group']]) if (filter[name]) parts.push(`${text} ${filter[name]}`);
  if (filter.since) parts.push(SINCE_TEXT.find(([value]) => value === filter.since)[1].toLowerCase());
  if (filter.from) parts.push(`from ${filter.from}`);
  if (filter.to) parts.push(`to ${filter.to}`);
  return parts.length ? parts.join(', ') : 'all jobs';
}

/** A time as a control for local times has it, and back. */
function toLocal(text) {
  if (!text || Number.isNaN(Date.parse(text))) return '';
  const at = new Date(text);
  return new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
const fromLocal = (text) => (text ? new Date(text).toISOString() : '');

/** The list as it was left, for who comes back to it. */
let left;

function took(job) {
  if (!job.started_at) return '';
  if (job.finished_at) return duration(Math.max(0, between(job.started_at, job.finished_at)));
  return job.status === 'running' ? duration(Math.max(0, (Date.now() - Date.parse(job.started_at)) / 1000)) : '';
}

export async function page(context) {
  const filter = filterOf(context.query);
  let address = location.search;
  const chosen = new Set();
  const canOperate = session.can('operate');
  let next;
  let loading;

  const total = h('p', { class: 'total', 'aria-live': 'polite' });
  const empty = h('p', { class: 'empty', hidden: true });
  const bar = h('div', { class: 'bulk' });

  const draw = (job) => {
    const address = `/jobs/${job.id}`;
    const box =
      canOperate &&
      h('input', {
        type: 'checkbox',
        checked: chosen.has(job.id),
        'aria-label': `Choose ${job.kind ?? 'job'} ${job.id}`,
        data: { focus: 'box' },
        on: {
          change: (event) => {
            if (event.target.checked) chosen.add(job.id);
            else chosen.delete(job.id);
            drawBulk();
          },
        },
      });
    const attempts = job.max_attempts ? `${job.attempt}/${job.max_attempts}` : String(job.attempt);
    return [
      h('span', { class: 'pick', role: 'cell' }, box),
      h('span', { class: 'state', role: 'cell' }, status(job.status), job.cancel_requested_at && !FINAL.includes(job.status) && h('span', { class: 'quiet', title: 'Its cancellation was asked for' }, ' ⨯')),
      h(
        'span',
        { class: 'what', role: 'cell' },
        h('a', { href: address, data: { focus: 'link' } }, job.kind ?? '(no kind)'),
        h('span', { class: 'more' }, job.error ? h('span', { class: 'error' }, shorten(`${job.error.code}: ${job.error.message}`)) : h('code', {}, job.id)),
      ),
      h('span', { class: 'queue', role: 'cell' }, job.queue),
      h('span', { class: 'tries number', role: 'cell', title: job.run > 1 ? `run ${job.run}` : undefined }, attempts, job.run > 1 && h('span', { class: 'quiet' }, ` r${job.run}`)),
      h('span', { class: 'took number', role: 'cell' }, took(job)),
      h('span', { class: 'when', role: 'cell' }, time(job.created_at)),
    ];
  };

  const rows = new Rows({
    label: 'Jobs',
    columns: [['pick', h('span', { class: 'unseen' }, 'Chosen')], ['state', 'Status'], ['what', 'Kind'], ['queue', 'Queue'], ['tries number', 'Attempt'], ['took number', 'Took'], ['when', 'Submitted']],
    draw,
    onmore: async () => {
      if (!next) return false;
      const mine = loading;
      const more = await get('/v1/jobs', { ...mine.query, limit: NEXT, cursor: next }, mine.signal).catch(complainOnce);
      if (!more || mine !== loading) return false;
      next = more.next;
      rows.set(rows.items.concat(more.items));
      drawTotal();
      return true;
    },
  });
  context.onclose(() => rows.close());

  let complained = false;
  function complainOnce(error) {
    if (error.name === 'AbortError' || complained) return;
    complained = true;
    complain(error);
  }

  function drawTotal() {
    put(total, next ? `${count(rows.items.length)} loaded, more below` : many(rows.items.length, 'job'));
    empty.hidden = rows.items.length > 0;
    if (!empty.hidden) put(empty, 'No job fits. ', Object.keys(queryOf(filter)).length > 0 && button('Clear the filters', clear));
  }

  function drawBulk() {
    if (!canOperate) return;
    const ids = [...chosen];
    const fit = (wanted) => !filter.status.length || filter.status.some(wanted);
    const able = { cancel: ids.length > 0 || fit((name) => !FINAL.includes(name)), replay: ids.length > 0 || fit((name) => name === 'dead') };
    const about = ids.length ? `${many(ids.length, 'chosen job')}` : `All jobs that fit: ${words(filter)}`;
    const target = (wanted) => {
      if (ids.length) return { ids };
      const { status: states, ...rest } = asked(filter, loading.now);
      const named = (states ?? '').split(',').filter(Boolean).filter(wanted);
      return { filter: named.length ? { ...rest, status: named } : rest };
    };
    const start = async (kind) => {
      const begun = await act(
        kind === 'cancel'
          ? { title: 'Cancel jobs', about: `${about}; of these, the ones that have not ended.`, verb: 'Cancel the jobs', danger: true, make: (said) => ['POST', '/v1/jobs/cancel', { body: { ...target((name) => !FINAL.includes(name)), ...said } }] }
          : { title: 'Replay dead jobs', about: `${about}; of these, the dead ones. Each starts its next run.`, verb: 'Replay the jobs', rate: true, make: (said) => ['POST', '/v1/jobs/replay', { body: { ...target((name) => name === 'dead'), ...said } }] },
      );
      if (begun) {
        chosen.clear();
        rows.redraw();
        drawBulk();
      }
    };
    put(
      bar,
      h('span', { class: 'quiet', 'aria-live': 'polite' }, ids.length ? `${count(ids.length)} chosen` : ''),
      ids.length > 0 &&
        button('Choose none', () => {
          chosen.clear();
          rows.redraw();
          drawBulk();
        }),
      button(ids.length ? 'Replay chosen …' : 'Replay all that fit …', () => start('replay'), { disabled: !able.replay, title: able.replay ? undefined : 'No dead job fits the filter' }),
      button(ids.length ? 'Cancel chosen …' : 'Cancel all that fit …', () => start('cancel'), { disabled: !able.cancel, title: able.cancel ? undefined : 'All that fit have ended' }),
    );
  }

  async function load() {
    loading?.end.abort();
    const end = new AbortController();
    const now = Date.now();
    loading = { end, signal: end.signal, now, query: asked(filter, now) };
    const mine = loading;
    complained = false;
    context.setQuery(queryOf(filter));
    address = location.search;
    readCounts();
    const found = await get('/v1/jobs', { ...mine.query, limit: FIRST }, mine.signal);
    if (mine !== loading) return;
    next = found.next;
    rows.set(found.items);
    drawTotal();
    drawBulk();
  }
  context.onclose(() => loading?.end.abort());

  /** What is new at the top. Rows that look the same are kept. */
  async function refresh() {
    if (scrollY > 300 || !loading) return;
    const mine = loading;
    const found = await get('/v1/jobs', { ...asked(filter, filter.since ? Date.now() : mine.now), limit: FIRST }, mine.signal).catch(() => undefined);
    if (!found || mine !== loading) return;
    const known = new Map(rows.items.slice(0, FIRST * 3).map((job) => [job.id, job]));
    const items = found.items.map((job) => (JSON.stringify(known.get(job.id)) === JSON.stringify(job) ? known.get(job.id) : job));
    const last = items.at(-1);
    const place = last && found.next ? rows.items.findIndex((job) => job.id === last.id) : -1;
    if (!found.next || place < 0) next = found.next;
    rows.set(place < 0 ? items : items.concat(rows.items.slice(place + 1)));
    drawTotal();
    await readCounts();
  }

  // The filters.
  const counters = new Map();
  const states = h(
    'fieldset',
    { class: 'chips' },
    h('legend', { class: 'unseen' }, 'Status'),
    STATUSES.map((name) => {
      const number = h('span', { class: 'quiet' });
      counters.set(name, number);
      const box = h('input', {
        type: 'checkbox',
        class: 'unseen',
        value: name,
        checked: filter.status.includes(name),
        on: {
          change: () => {
            filter.status = STATUSES.filter((one) => (one === name ? box.checked : filter.status.includes(one)));
            reload();
          },
        },
      });
      return h('label', { class: 'chip' }, box, status(name), ' ', number);
    }),
  );
  async function readCounts() {
    const found = await get('/v1/jobs/counts', { queue: filter.queue }, loading?.signal).catch(() => undefined);
    if (found) for (const [name, number] of counters) put(number, brief(found.counts[name]));
  }

  const given = { queues: [], kinds: [] };
  try {
    const [queues, kinds] = await Promise.all([get('/v1/queues'), get('/v1/kinds')]);
    given.queues = queues.items.map((queue) => queue.queue);
    given.kinds = kinds.items.map((kind) => kind.kind);
  } catch (error) {
    complain(error);
  }
  if (filter.queue && !given.queues.includes(filter.queue)) given.queues.push(filter.queue);
  const set = (name) => (event) => {
    filter[name] = event.target.value.trim();
    reload();
  };
  const queue = select([['', 'All queues'], ...given.queues.map((name) => [name, name])], filter.queue, { change: set('queue') });
  const kind = h('input', { list: 'kinds', value: filter.kind, placeholder: 'any', autocomplete: 'off', spellcheck: 'false', on: { change: set('kind') } });
  const tag = h('input', { value: filter.tag, placeholder: 'any', autocomplete: 'off', spellcheck: 'false', on: { change: set('tag') } });
  const text = h('input', {
    type: 'search',
    value: filter.q,
    placeholder: 'text of the error, or an id',
    autocomplete: 'off',
    spellcheck: 'false',
    maxlength: '200',
    on: {
      change: () => {
        if (isId(text.value)) return context.go(`/jobs/${text.value.trim().toLowerCase()}`);
        filter.q = text.value.trim();
        reload();
      },
    },
  });
  const range = h('div', { class: 'range', hidden: !(filter.from || filter.to) });
  const bound = (name, label) =>
    field(label, h('input', { type: 'datetime-local', step: '1', value: toLocal(filter[name]), on: { change: (event) => ((filter[name] = fromLocal(event.target.value)), reload()) } }));
  put(range, bound('from', 'From'), bound('to', 'To'));
  const since = select(SINCE_TEXT, filter.from || filter.to ? 'range' : filter.since, {
    change: () => {
      range.hidden = since.value !== 'range';
      filter.since = since.value === 'range' ? '' : since.value;
      if (since.value !== 'range') filter.from = filter.to = '';
      reload();
    },
  });
  const group = filter.fingerprint && h('p', { class: 'group' }, 'Of one error group: ', h('code', {}, filter.fingerprint), ' ', button('All errors', () => ((filter.fingerprint = ''), context.go(`/jobs?${new URLSearchParams(queryOf(filter))}`))));
  function clear() {
    context.go('/jobs');
  }
  async function reload() {
    try {
      scrollTo(0, Math.min(scrollY, 0));
      await load();
      say(total.textContent);
    } catch (error) {
      if (error.name === 'AbortError') return;
      rows.set([]);
      next = undefined;
      put(total, error.text ?? String(error));
      empty.hidden = true;
    }
  }

  const filters = h(
    'form',
    { class: 'filters', 'aria-label': 'Filters', on: { submit: (event) => event.preventDefault() } },
    states,
    h(
      'details',
      // Where there is room they are always there.
      { class: 'refine', open: matchMedia('(min-width: 721px)').matches || Boolean(filter.kind || filter.tag || filter.q || filter.from || filter.to) },
      h('summary', {}, 'Queue, kind, tag, text, time'),
      h('div', { class: 'fields' }, field('Queue', queue), field('Kind', kind), field('Tag', tag), field('Search', text), field('Submitted', since), range, h('datalist', { id: 'kinds' }, given.kinds.map((name) => h('option', { value: name })))),
    ),
    group,
  );
  // The summary is hidden where there is room.
  const room = matchMedia('(min-width: 721px)');
  const opened = () => room.matches && (filters.querySelector('details').open = true);
  room.addEventListener('change', opened);
  context.onclose(() => room.removeEventListener('change', opened));
  const choose = () => rows.current && document.activeElement.closest('.row').querySelector('input[type=checkbox]')?.click();
  context.setKeys({
    j: ['Next job', () => rows.move(1)],
    k: ['The job before', () => rows.move(-1)],
    x: ['Choose the job, or not', choose],
    r: ['Read again', reload],
    f: ['To the filters', () => ((queue.closest('details').open = true), queue.focus())],
  });
  const acted = () => isLive() && refresh();
  document.addEventListener('acted', acted);
  context.onclose(() => document.removeEventListener('acted', acted));
  context.onclose(repeat(refresh, LOOK));
  const known = context.back && left?.address === location.search ? left : undefined;
  if (known) {
    loading = { end: new AbortController(), now: known.now, query: asked(filter, known.now) };
    loading.signal = loading.end.signal;
    next = known.next;
    rows.set(known.items);
    drawTotal();
    drawBulk();
    readCounts();
  } else {
    await reload();
  }
  context.onclose(() => (left = { address, items: rows.items, next, now: loading.now, top: scrollY }));
  return {
    scroll: known?.top,
    title: 'Jobs',
    tools: [session.can('submit') && h('a', { class: 'button', href: '/submit' }, 'Submit a job')],
    content: [filters, h('div', { class: 'above' }, total, bar), rows.element, empty],
    drawn: () => rows.render(),
  };
}
