// Acts on many jobs: a dry run says how many, a person says yes, and the act, which is a job itself, is followed.

import { call, get, newKey } from './api.js';
import { ask, notice } from './dialog.js';
import { field, h, put } from './dom.js';
import { Exact } from './exact.js';
import { count, FINAL, many } from './format.js';

/** How often an act that was begun is looked at, in ms, and how often at most. */
const LOOK = 1000;
const LOOKS = 600;

/** A request that may be a dry run: `make(fields)` is `[method, path, { query, body }]`. */
async function send([method, path, { query, body }], dry, key) {
  if (method === 'DELETE') return call(method, path, { query: dry ? { ...query, dry_run: 'true' } : query, key });
  const whole = dry ? { ...body, dry_run: true } : body;
  const { set, ...rest } = whole;
  // Args go out as they were written.
  const text = JSON.stringify(rest);
  const full = set === undefined ? text : `${text.slice(0, -1)}${text.length > 2 ? ',' : ''}"set":{"args":${set}}}`;
  return call(method, path, { body: full, key });
}

/**
 * Asks for an act on many jobs. `about`: what it is about, in words; `make(fields)`: its request; `countBy`: the one that is counted
 * by, if another; `always`: also if that counts nothing; `rate`, `args`: what else can be said (`args`: the text to begin with).
 * Resolves when it was begun, or not.
 */
export async function act({ title, about, verb, danger, typed, make, countBy, rate, args, always }) {
  const found = h('p', { class: 'found', 'aria-live': 'polite' }, 'Counting …');
  const fields = {};
  let matched = 0;
  const reason = h('input', { maxlength: '300', autocomplete: 'off' });
  const speed = rate && h('input', { type: 'number', min: '0.01', step: 'any', inputmode: 'decimal', placeholder: 'as fast as it goes' });
  const edits = args !== undefined && h('select', {}, h('option', { value: '' }, 'their own'), h('option', { value: 'new' }, 'these instead:'));
  const text = args !== undefined && h('textarea', { rows: '8', class: 'code', spellcheck: 'false', 'aria-label': 'New args', hidden: true, value: args || '{}' });
  edits && edits.addEventListener('change', () => (text.hidden = !edits.value));
  const read = () => {
    const given = { by: undefined, reason: reason.value.trim() || undefined };
    if (speed?.value) given.rate = Number(speed.value);
    if (edits?.value) given.set = checkedArgs(text.value).text;
    return given;
  };
  const content = h(
    'div',
    {},
    h('p', {}, about),
    found,
    speed && field('Jobs per second, at most', speed),
    edits && h('div', {}, field('Args', edits), text),
    field('Reason, for the record (optional)', reason),
  );
  const key = newKey();
  content.ondialog = async (dialog) => {
    try {
      const answer = await send(countBy ?? make(fields), true);
      matched = answer.matched;
      put(found, h('b', {}, answer.at_least ? `At least ${many(matched, 'job')}` : many(matched, 'job')), matched ? '' : always ? ' in the record.' : ': there is nothing to do.');
    } catch (error) {
      put(found, error.text ?? String(error));
    }
    dialog.recheck();
  };
  const begun = await ask({
    title,
    content,
    verb,
    danger,
    typed,
    ready: () => always || matched > 0,
    act: () => send(make(read()), false, key),
  });
  if (begun) follow(begun, title);
  return begun;
}

/** Args that somebody wrote, if they are JSON. */
export function checkedArgs(text) {
  try {
    return Exact.parse(text);
  } catch (error) {
    throw new Error(`The args are no JSON: ${error.message}`, { cause: error });
  }
}

/** Follows an act to its end, in a notice. */
export async function follow(accepted, title) {
  const link = () => h('a', { href: `/jobs/${accepted.id}` }, 'act');
  const shown = notice([`${title}: accepted (`, link(), ')'], { stay: 0 });
  for (let look = 0; look < LOOKS && !shown.isGone; look += 1) {
    await new Promise((resolve) => setTimeout(resolve, look < 4 ? LOOK / 4 : LOOK));
    let job;
    try {
      job = await get(`/v1/jobs/${accepted.id}`);
    } catch {
      continue;
    }
    if (!FINAL.includes(job.status)) {
      if (job.progress) shown.set([`${title}: ${job.progress.message} (`, link(), ')']);
      continue;
    }
    shown.set([`${title}: ${ended(job)} (`, link(), ')'], true);
    document.dispatchEvent(new CustomEvent('acted', { detail: job }));
    return;
  }
}

function ended(job) {
  if (job.status !== 'succeeded') return `${job.status}${job.error ? `: ${job.error.message}` : ''}`;
  const { done = 0, skipped = 0, failed = 0 } = job.output ?? {};
  return [`${count(done)} done`, skipped && `${count(skipped)} skipped`, failed && `${count(failed)} failed`].filter(Boolean).join(', ');
}

/** Replays one dead job, with its args or with others. */
export async function replayOne(job, edit) {
  const text = h('textarea', { rows: '12', class: 'code', spellcheck: 'false', 'aria-label': 'Args', data: { first: '' }, value: job.args?.pretty ?? '{}' });
  const reason = h('input', { maxlength: '300', autocomplete: 'off' });
  const key = newKey();
  const begun = await ask({
    title: edit ? 'Edit args and replay' : 'Replay this job',
    content: h(
      'div',
      {},
      h('p', {}, `${job.kind ?? 'The job'} starts its next run: attempt 1 of run ${job.run + 1}.`),
      edit && field('Args', text, job.args_omitted ? 'The args are not in the record: what stands here replaces them.' : undefined),
      field('Reason, for the record (optional)', reason),
    ),
    verb: 'Replay',
    act: () => {
      const note = reason.value.trim() ? { reason: reason.value.trim() } : {};
      const set = edit ? checkedArgs(text.value).text : undefined;
      return send(['POST', `/v1/jobs/${job.id}/replay`, { body: { ...note, set } }], false, key);
    },
  });
  if (begun) follow(begun, 'Replay');
  return begun;
}

/** Cancels one job. */
export async function cancelOne(job) {
  const reason = h('input', { maxlength: '300', autocomplete: 'off', data: { first: '' } });
  const done = await ask({
    title: 'Cancel this job',
    content: h('div', {}, h('p', {}, job.status === 'running' ? 'The handler is told to stop, and is dropped if it does not.' : 'It will not run.'), field('Reason, for the record (optional)', reason)),
    verb: 'Cancel the job',
    danger: true,
    act: () => call('DELETE', `/v1/jobs/${job.id}`, { query: { reason: reason.value.trim() } }),
  });
  if (done) notice('The cancellation is asked for.');
  return done;
}
