// Submit: a job, by a form that is made from its kind's JSON Schema, or by JSON.

import { call, get, getJob, newKey, session } from './api.js';
import { checkedArgs } from './bulk.js';
import { button, field, h, put, select } from './dom.js';
import { Exact } from './exact.js';
import { formOf, isFormable, tried } from './form.js';

/** What a job may say besides its kind and args. */
const MORE = [
  ['queue', 'Queue', "the kind's", 'Where it waits.'],
  ['delay', 'Delay', 'none', 'Run after this: 30s, 1h30m, 2d.'],
  ['run_at', 'Run at', 'now', 'Instead of a delay.', 'datetime-local'],
  ['expires_in', 'Expires in', 'never', 'No attempt starts after this.'],
  ['timeout', 'Timeout', "the kind's", 'Longest run of one attempt.'],
  ['max_attempts', 'Attempts', "the kind's", 'In all, 1 to 1000.', 'number'],
  ['tags', 'Tags', 'none', 'Joined by commas.'],
];

/** The kinds that can be submitted, and what is to be said of them. */
async function readKinds() {
  // A key may submit and not read: then a kind is written by hand.
  if (!session.can('read')) return [[], `The key ${session.name} may not read which kinds there are: write one.`];
  try {
    const kinds = (await get('/v1/kinds')).items.filter((kind) => !kind.kind.startsWith('hopline.'));
    return [kinds, kinds.length ? 'One that a worker has announced, or any other.' : 'No worker has announced a kind.'];
  } catch (error) {
    return [[], `Which kinds there are could not be read. ${error.text}`];
  }
}

export async function page(context) {
  const [[kinds, known], like] = await Promise.all([readKinds(), context.query.get('like') ? getJob(context.query.get('like')) : undefined]);
  const name = h('input', { list: 'kinds', required: true, autocomplete: 'off', spellcheck: 'false', maxlength: '100', value: like?.kind ?? context.query.get('kind') ?? '' });
  const about = h('div', { class: 'about' });
  const args = h('div', { class: 'args' });
  const wrong = h('div', { class: 'wrong', role: 'alert' });
  const done = h('p', { class: 'done', role: 'status' });
  const text = h('textarea', { id: 'args-text', rows: '12', class: 'code', spellcheck: 'false', 'aria-label': 'Args as JSON', value: like?.args?.pretty ?? '{}' });
  let form;
  /** What the form gives before anybody writes in it. */
  let untouched;
  let note = '';
  let schema;
  let schemas = [];
  let mode = 'json';
  let key = newKey();

  const inputs = new Map();
  const more = MORE.map(([member, label, placeholder, hint, type]) => {
    const input = h('input', { type: type ?? 'text', placeholder, autocomplete: 'off', spellcheck: 'false', step: type === 'datetime-local' ? '1' : undefined, min: type === 'number' ? '1' : undefined, max: type === 'number' ? '1000' : undefined });
    inputs.set(member, input);
    return field(label, input, hint);
  });
  if (like) {
    inputs.get('queue').value = like.queue;
    inputs.get('tags').value = like.tags.join(', ');
  }

  /** The args, from whichever way they are written. */
  const read = () => (mode === 'form' ? new Exact(form.read() ?? '{}') : checkedArgs(text.value.trim() || '{}'));

  /** Goes over to a form of the args that stand as text. One that a kind begins with has none. */
  function toForm() {
    const given = read();
    form = formOf(schema, !like?.args && given.line === '{}' ? undefined : given);
    untouched = tried(() => form.read());
    mode = 'form';
  }

  function drawArgs() {
    put(
      args,
      schema !== undefined &&
        h(
          'div',
          { class: 'switch', role: 'group', 'aria-label': 'How the args are written' },
          button('Form', () => turn('form'), { 'aria-pressed': String(mode === 'form') }),
          button('JSON', () => turn('json'), { 'aria-pressed': String(mode === 'json') }),
        ),
      note && h('p', { class: 'hint' }, note),
      mode === 'form' ? form.element : text,
    );
  }

  /** Goes over to the other way of writing; what was written goes along. */
  function turn(next) {
    if (next === mode) return;
    put(wrong);
    try {
      if (next === 'form') toForm();
      else text.value = read().pretty;
      mode = next;
      note = '';
      drawArgs();
    } catch (error) {
      put(wrong, error.message);
    }
  }

  let chosen;
  function choose() {
    // Whoever leaves the field for a button of the args has not chosen anew: the button must stay where it is.
    if (chosen === name.value.trim()) return;
    chosen = name.value.trim();
    const kind = kinds.find((one) => one.kind === chosen);
    schemas = (kind?.schemas ?? []).filter((one) => one.args !== undefined);
    put(
      about,
      kind && h('p', { class: 'quiet' }, `Queue ${kind.queue}; ${kind.workers.length ? `run by ${kind.workers.join(', ')}` : 'no worker that runs it is alive'}.`),
      kind?.deprecated && h('p', { class: 'badge is-warn' }, `Deprecated: ${kind.deprecated}`),
      schemas.length > 1 && field('Version of its args', select(schemas.map((one, index) => [String(index), `of ${one.announced_by.join(', ')}`]), '0', { change: (event) => build(Number(event.target.value)) })),
    );
    build(0);
  }

  function build(index) {
    // What was written goes along; a form that nobody touched has nothing to take.
    const before = mode === 'form' ? tried(() => form.read()) : undefined;
    if (before !== undefined && before !== untouched) text.value = new Exact(before).pretty;
    mode = 'json';
    note = like && !like.args ? 'The args of that job are not in the record.' : '';
    schema = schemas[index]?.args;
    try {
      if (schema !== undefined && isFormable(schema)) toForm();
      else schema = undefined;
    } catch (error) {
      note = error.message;
    }
    drawArgs();
  }

  async function submit(event) {
    event.preventDefault();
    put(wrong);
    put(done);
    const does = event.submitter;
    try {
      const job = { kind: name.value.trim() };
      for (const [member, input] of inputs) {
        const value = input.value.trim();
        if (!value) continue;
        if (member === 'tags') job.tags = value.split(',').map((tag) => tag.trim()).filter(Boolean);
        else if (member === 'max_attempts') job.max_attempts = Number(value);
        else if (member === 'run_at') job.run_at = new Date(value).toISOString();
        else job[member] = value;
      }
      const whole = JSON.stringify(job);
      const body = `${whole.slice(0, -1)},"args":${read().text}}`;
      if (does) does.disabled = true;
      const accepted = await call('POST', '/v1/jobs', { body, key });
      key = newKey();
      if (session.can('read')) context.go(`/jobs/${accepted.id}`);
      else put(done, 'Accepted: job ', h('code', {}, accepted.id), '.');
    } catch (error) {
      // Another request is not the same one any more.
      if (error.status && error.status < 500) key = newKey();
      put(wrong, h('p', {}, error.errors?.length ? error.title : (error.text ?? error.message)), error.errors?.length > 0 && h('ul', {}, error.errors.map((one) => h('li', {}, h('code', {}, one.pointer ?? one.parameter ?? one.header ?? ''), ' ', one.detail))));
      wrong.scrollIntoView({ block: 'nearest' });
    } finally {
      if (does) does.disabled = false;
    }
  }

  name.addEventListener('change', choose);
  name.addEventListener('input', () => kinds.some((kind) => kind.kind === name.value.trim()) && choose());
  choose();
  return {
    title: 'Submit',
    heading: 'Submit a job',
    content: h(
      'form',
      { class: 'panel submit', on: { submit } },
      field('Kind', name, known),
      h('datalist', { id: 'kinds' }, kinds.map((kind) => h('option', { value: kind.kind }))),
      about,
      h('h2', {}, 'Args'),
      args,
      h('details', { open: Boolean(like) }, h('summary', {}, 'When, where and how often'), h('div', { class: 'fields' }, more)),
      wrong,
      done,
      h('div', { class: 'foot' }, h('button', { type: 'submit', class: 'primary' }, 'Submit')),
    ),
  };
}
