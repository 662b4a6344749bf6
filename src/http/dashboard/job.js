// A job: where it stands, its attempts, what it was given and what it returned, kept up to date until it ends.

import { getJob, session } from './api.js';
import { cancelOne, replayOne } from './bulk.js';
import { button, h, put, say, update } from './dom.js';
import { absolute, between, count, duration, FINAL, status, time } from './format.js';
import { json } from './json.js';
import { stream } from './live.js';

const EVENTS = ['submitted', 'scheduled', 'started', 'progress', 'retrying', 'succeeded', 'dead', 'cancelled', 'expired', 'delivery_lost', 'cancel_requested', 'purged'];
/** Attempts that are drawn at first; more on request. */
const ATTEMPTS = 30;

function fact(name, ...value) {
  return value.flat(Infinity).some((part) => part !== undefined && part !== null && part !== false && part !== '') && [h('dt', {}, name), h('dd', {}, value)];
}

function moment(text) {
  return text && [time(text), h('span', { class: 'quiet' }, ` ${absolute(text)}`)];
}

function facts(job) {
  const waited = job.started_at && job.attempt <= 1 && between(job.run_at ?? job.created_at, job.started_at);
  const attempts = job.max_attempts ? `${count(job.attempt)} of ${count(job.max_attempts)}` : count(job.attempt);
  return h(
    'dl',
    { class: 'facts' },
    fact('Queue', h('a', { href: `/jobs?queue=${encodeURIComponent(job.queue)}` }, job.queue)),
    fact('Attempts', attempts, job.run > 1 && ` in run ${job.run}`),
    fact('Submitted', moment(job.created_at)),
    fact(['scheduled', 'retrying', 'queued'].includes(job.status) ? 'Runs' : 'Was due', job.run_at && moment(job.run_at)),
    fact('Waited', waited >= 0 && duration(waited)),
    fact('Last started', moment(job.started_at)),
    fact('Ended', moment(job.finished_at)),
    fact('Expires', moment(job.expires_at)),
    fact('Worker', job.worker),
    fact('Tags', job.tags.map((tag) => [h('a', { class: 'tag', href: `/jobs?tag=${encodeURIComponent(tag)}` }, tag), ' '])),
    fact('Cancellation', job.cancel_requested_at && [moment(job.cancel_requested_at), job.cancel_requested_by && ` by ${job.cancel_requested_by}`, job.cancel_reason && `: ${job.cancel_reason}`]),
    fact('Error group', job.fingerprint && h('a', { href: `/jobs?${new URLSearchParams({ status: 'dead', queue: job.queue, fingerprint: job.fingerprint })}` }, h('code', {}, job.fingerprint))),
    fact('Trace', traceOf(job)),
  );
}

function traceOf(job) {
  if (!job.trace_id) return undefined;
  const address = session.trace_url?.replaceAll('{trace_id}', encodeURIComponent(job.trace_id));
  // The configuration was checked by the server; a browser that was told something else is not sent there.
  return address && /^https?:\/\//.test(address) ? h('a', { href: address, target: '_blank', rel: 'noopener noreferrer' }, h('code', {}, job.trace_id)) : h('code', {}, job.trace_id);
}

function error(job) {
  if (!job.error) return null;
  const { code, message, reason } = job.error;
  return h(
    'section',
    { class: `panel failure${job.status === 'dead' ? ' is-dead' : ''}`, 'aria-label': 'Error' },
    h('h2', {}, job.status === 'dead' ? `Dead: ${reason ?? code}` : job.status === 'cancelled' ? 'Cancelled' : job.status === 'expired' ? 'Expired' : `Last error`),
    h('p', {}, h('code', {}, code)),
    message && h('pre', { class: 'message', tabindex: '0' }, message),
    job.purged && h('p', {}, 'Its message was purged: it cannot be replayed.'),
  );
}

/** The span that bars of attempts are drawn in. */
function spanOf(attempts) {
  const starts = attempts.map((one) => Date.parse(one.started_at ?? one.finished_at)).filter((at) => !Number.isNaN(at));
  const ends = attempts.map((one) => (one.finished_at ? Date.parse(one.finished_at) : one.started_at ? Date.now() : Number.NaN)).filter((at) => !Number.isNaN(at));
  const [from, to] = [Math.min(...starts), Math.max(...ends, ...starts)];
  return { from, length: Math.max(1, to - from) };
}

const MARK = { succeeded: 'succeeded', snoozed: 'scheduled', cancelled: 'cancelled' };

function attempt(one, span, first) {
  const from = one.started_at && Date.parse(one.started_at);
  const to = one.finished_at ? Date.parse(one.finished_at) : Date.now();
  const outcome = one.outcome ?? (one.finished_at ? 'unknown' : 'running');
  const mark = MARK[outcome] ?? (outcome === 'running' ? 'running' : 'dead');
  const left = from ? ((from - span.from) / span.length) * 100 : 0;
  const width = from ? ((to - from) / span.length) * 100 : 0;
  return h(
    'li',
    { data: { key: `${one.run}-${one.attempt}-${one.started_at ?? ''}` } },
    first && h('h3', {}, `Run ${one.run}`),
    h(
      'div',
      { class: 'attempt' },
      h('span', { class: 'which' }, `#${one.attempt}`),
      h('span', { class: `status is-${mark}` }, outcome.replace('_', ' ')),
      h('span', { class: 'number' }, one.started_at ? duration(Math.max(0, (to - from) / 1000)) : '–'),
      h('span', { class: 'by' }, one.worker ?? ''),
      h('span', { class: 'at' }, one.started_at ? h('time', { datetime: one.started_at, title: absolute(one.started_at, true) }, absolute(one.started_at)) : one.finished_at ? absolute(one.finished_at) : ''),
    ),
    h('div', { class: 'track', 'aria-hidden': 'true' }, from && h('span', { class: `fill is-${mark}`, css: { left: `${Math.min(99, left)}%`, width: `${Math.max(0.6, Math.min(100 - Math.min(99, left), width))}%` } })),
    one.error && h('p', { class: 'error' }, h('code', {}, one.error.code), ' ', one.error.message),
  );
}

function timeline(job, most) {
  const attempts = job.attempts ?? [];
  if (!attempts.length) return h('p', { class: 'quiet' }, FINAL.includes(job.status) ? 'No attempt was made.' : 'No attempt yet.');
  const shown = attempts.slice(-most);
  const span = spanOf(shown);
  return h('ol', { class: 'timeline' }, shown.map((one, index) => attempt(one, span, (index === 0 || shown[index - 1].run !== one.run) && (shown[0].run !== shown.at(-1).run || job.run > 1))));
}

function progress(job) {
  if (!job.progress || FINAL.includes(job.status)) return null;
  const { percent, message } = job.progress;
  return h('section', { class: 'panel' }, h('h2', { id: 'progress' }, 'Progress'), h('progress', { max: '100', value: percent, 'aria-labelledby': 'progress' }, `${percent} %`), h('p', {}, `${percent} %`, message && ` · ${message}`));
}

function payload(name, value, isOmitted, none) {
  const content = value !== undefined ? json(name, value) : h('p', { class: 'quiet' }, isOmitted ? 'Not in the record: too long, no JSON, or the kind is private.' : none);
  return h('section', { class: 'panel' }, h('h2', {}, name), content);
}

export async function page(context) {
  const { id } = context.parts;
  let job = await getJob(id);
  let most = ATTEMPTS;
  const box = {
    state: h('div', { class: 'standing' }),
    progress: h('div'),
    error: h('div'),
    facts: h('section', { class: 'panel', 'aria-label': 'Facts' }),
    timeline: h('div'),
    more: h('div'),
    args: h('div'),
    output: h('div'),
    actions: h('span', { class: 'actions' }),
  };
  let shown = {};

  function draw() {
    update(box.state, status(job.status), ' ', h('code', { class: 'id' }, job.id));
    update(box.progress, progress(job));
    update(box.error, error(job));
    update(box.facts, h('h2', { class: 'unseen' }, 'Facts'), facts(job));
    update(box.timeline, timeline(job, most));
    const hidden = (job.attempts ?? []).length - most;
    put(box.more, hidden > 0 && button(`${count(hidden)} earlier attempts`, () => ((most = Number.MAX_SAFE_INTEGER), draw())));
    // Trees keep what is open in them: they are drawn again only if they are others.
    for (const [name, title, none] of [['args', 'Args', 'None.'], ['output', 'Output', FINAL.includes(job.status) ? 'None.' : 'Not yet.']]) {
      const text = JSON.stringify([job[name]?.text, job[`${name}_omitted`], none]);
      if (shown[name] !== text) put(box[name], payload(title, job[name], job[`${name}_omitted`], none));
      shown[name] = text;
    }
    drawActions();
  }

  const change = async (act) => {
    if (await act()) await read();
  };
  function drawActions() {
    const operates = session.can('operate');
    const open = !FINAL.includes(job.status);
    const dead = job.status === 'dead' && !job.purged;
    const own = job.kind?.startsWith('hopline.');
    const wanted = [
      operates && dead && ['Replay', () => change(() => replayOne(job)), 'primary'],
      operates && dead && !own && ['Edit args and replay', () => change(() => replayOne(job, true))],
      operates && open && !job.cancel_requested_at && ['Cancel', () => change(() => cancelOne(job)), 'danger'],
    ].filter(Boolean);
    const again = session.can('submit') && !own && job.kind && job.args !== undefined;
    const key = JSON.stringify([wanted.map(([name]) => name), again]);
    if (shown.actions === key) return;
    shown.actions = key;
    put(box.actions, wanted.map(([name, click, kind]) => button(name, click, { class: kind })), again && h('a', { class: 'button', href: `/submit?like=${job.id}` }, 'Submit another'));
  }

  let reading;
  let again = false;
  /** Reads the job; what comes meanwhile leads to one more reading. */
  async function read() {
    if (reading) {
      again = true;
      return reading;
    }
    reading = (async () => {
      do {
        again = false;
        const before = job.status;
        job = await getJob(id);
        draw();
        if (job.status !== before) say(`The job is ${job.status}`);
        await new Promise((resolve) => setTimeout(resolve, 250));
      } while (again);
    })().catch(() => {});
    await reading;
    reading = undefined;
    return undefined;
  }

  let stop;
  function follow() {
    stop?.();
    stop = stream(`/v1/jobs/${encodeURIComponent(id)}/events`, Object.fromEntries(EVENTS.map((name) => [`hopline.job.${name}`, read])));
  }
  context.onclose(() => stop?.());
  // One that has ended may be replayed by others: acts say so.
  const acted = () => read().then(follow);
  document.addEventListener('acted', acted);
  context.onclose(() => document.removeEventListener('acted', acted));
  const timer = setInterval(() => !FINAL.includes(job.status) && !document.hidden && update(box.timeline, timeline(job, most)), 1000);
  context.onclose(() => clearInterval(timer));

  context.setKeys({
    r: ['Read again', read],
    ...(session.can('operate') && {
      c: ['Cancel the job', () => !FINAL.includes(job.status) && change(() => cancelOne(job))],
      e: ['Edit args and replay', () => job.status === 'dead' && !job.purged && change(() => replayOne(job, true))],
    }),
  });
  draw();
  return {
    title: `${job.kind ?? 'Job'} ${job.id.slice(0, 8)}`,
    heading: job.kind ?? 'Job without a kind',
    tools: box.actions,
    content: [
      box.state,
      box.progress,
      box.error,
      h('div', { class: 'columns is-job' }, h('div', {}, h('section', { class: 'panel' }, h('h2', {}, 'Attempts'), box.more, box.timeline), box.output, box.args), box.facts),
    ],
    drawn: follow,
  };
}
