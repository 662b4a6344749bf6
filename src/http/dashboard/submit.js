// Submit: a job, by a form that is made from its kind's JSON Schema, or by JSON.

import { call, get, newKey, parse } from './api.js';
import { button, field, h, put, select } from './dom.js';
import { formOf, isFormable } from './form.js';
import { pretty } from './json.js';

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

export async function page(context) {
  const [kinds, like] = await Promise.all([
    // A key may submit and not read: then a kind is written by hand.
    get('/v1/kinds').then((found) => found.items.filter((kind) => !kind.kind.startsWith('hopline.')), () => []),
    context.query.get('like') ? get(`/v1/jobs/${encodeURIComponent(context.query.get('like'))}`).catch(() => undefined) : undefined,
  ]);
  const name = h('input', { list: 'kinds', required: true, autocomplete: 'off', spellcheck: 'false', maxlength: '100', value: like?.kind ?? context.query.get('kind') ?? '' });
  const about = h('div', { class: 'about' });
  const args = h('div', { class: 'args' });
  const wrong = h('div', { class: 'wrong', role: 'alert' });
  const text = h('textarea', { id: 'args-text', rows: '12', class: 'code', spellcheck: 'false', 'aria-label': 'Args as JSON', value: like?.args === undefined ? '{}' : pretty(like.args) });
  let form;
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

  /** The args as text, from whichever way they are written. */
  const read = () => {
    if (mode === 'form') return form.read() ?? '{}';
    const written = text.value.trim() || '{}';
    try {
      parse(written);
    } catch (error) {
      throw new Error(`The args are no JSON: ${error.message}`, { cause: error });
    }
    return written;
  };

  function drawArgs() {
    const can = Boolean(form);
    put(
      args,
      can &&
        h(
          'div',
          { class: 'switch', role: 'group', 'aria-label': 'How the args are written' },
          button('Form', () => turn('form'), { 'aria-pressed': String(mode === 'form') }),
          button('JSON', () => turn('json'), { 'aria-pressed': String(mode === 'json') }),
        ),
      mode === 'form' ? form.element : text,
    );
  }

  /** Goes over to the other way of writing; what was written goes along. */
  function turn(next) {
    if (next === mode) return;
    put(wrong);
    try {
      if (next === 'form') form.set(parse(read()));
      else text.value = pretty(parse(read()));
      mode = next;
      drawArgs();
    } catch (error) {
      put(wrong, error.message);
    }
  }

  function choose() {
    const kind = kinds.find((one) => one.kind === name.value.trim());
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
    const schema = schemas[index]?.args;
    const before = mode === 'form' && form ? tried(() => pretty(parse(form.read() ?? '{}'))) : undefined;
    if (before) text.value = before;
    form = schema && isFormable(schema) ? formOf(schema) : undefined;
    mode = form ? 'form' : 'json';
    if (form) form.set(tried(() => parse(text.value)));
    drawArgs();
  }

  async function submit(event) {
    event.preventDefault();
    put(wrong);
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
      const body = `${whole.slice(0, -1)},"args":${read()}}`;
      if (does) does.disabled = true;
      const accepted = await call('POST', '/v1/jobs', { body, key });
      key = newKey();
      context.go(`/jobs/${accepted.id}`);
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
  name.addEventListener('input', () => kinds.some((kind) => kind.kind === name.value) && choose());
  choose();
  return {
    title: 'Submit',
    heading: 'Submit a job',
    content: h(
      'form',
      { class: 'panel submit', on: { submit } },
      field('Kind', name, kinds.length ? 'One that a worker has announced, or any other.' : 'No worker has announced a kind.'),
      h('datalist', { id: 'kinds' }, kinds.map((kind) => h('option', { value: kind.kind }))),
      about,
      h('h2', {}, 'Args'),
      args,
      h('details', { open: Boolean(like) }, h('summary', {}, 'When, where and how often'), h('div', { class: 'fields' }, more)),
      wrong,
      h('div', { class: 'foot' }, h('button', { type: 'submit', class: 'primary' }, 'Submit')),
    ),
  };
}

function tried(read) {
  try {
    return read();
  } catch {
    return undefined;
  }
}
