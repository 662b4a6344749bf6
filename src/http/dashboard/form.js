// A form from a JSON Schema: what it can show it shows, and the rest is JSON as text. The server checks what is sent; the form only
// helps to write it. What nobody touches is sent as it was given, to the digit; what a control cannot show is refused.

import { button, h, put, visible } from './dom.js';
import { Exact } from './exact.js';

/** Levels of objects and lists that get controls of their own. */
const DEPTH = 5;
/** Most controls that are made at once. */
const MOST = 500;
let ids = 0;
let room = MOST;

/** What a `$ref` within the schema stands for. */
function resolve(schema, root, seen = 0) {
  if (typeof schema !== 'object' || schema === null) return {};
  const { $ref: reference, ...rest } = schema;
  if (typeof reference !== 'string' || !reference.startsWith('#/') || seen > 8) return schema;
  const target = reference
    .slice(2)
    .split('/')
    .map((name) => decodeURIComponent(name).replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce((part, name) => (part && Object.hasOwn(part, name) ? part[name] : undefined), root);
  return { ...resolve(target, root, seen + 1), ...rest };
}

/** The schema without `null`, and whether `null` was one of its types. */
function withoutNull(schema, root) {
  const types = [schema.type].flat();
  if (types.length > 1 && types.includes('null')) {
    const rest = types.filter((type) => type !== 'null');
    return [{ ...schema, type: rest.length === 1 ? rest[0] : rest }, true];
  }
  for (const word of ['anyOf', 'oneOf']) {
    const parts = schema[word];
    if (!Array.isArray(parts)) continue;
    const rest = parts.filter((part) => resolve(part, root).type !== 'null');
    if (rest.length === parts.length - 1 && rest.length === 1) {
      const outer = { ...schema };
      delete outer[word];
      return [{ ...resolve(rest[0], root), ...outer }, true];
    }
  }
  return [schema, false];
}

/** The values of a schema that names all of them. */
function valuesOf(schema, root) {
  if (Array.isArray(schema.enum)) return schema.enum;
  if ('const' in schema) return [schema.const];
  const consts = (schema.oneOf ?? schema.anyOf)?.map((part) => resolve(part, root));
  return consts?.length && consts.every((part) => 'const' in part) ? consts.map((part) => part.const) : undefined;
}

/** A number of which digits may have been lost when the schema was read. */
const isVague = (value) => typeof value === 'number' && Math.abs(value) > Number.MAX_SAFE_INTEGER;

/**
 * A control: `element`, `read()` for its JSON text (nothing: left out; throws what is wrong), `set(part)` for what it begins with
 * (nothing: not given; throws if it cannot show it).
 */
function control(given, root, { label, required, depth }) {
  if ((room -= 1) < 0) throw new Error(`these are more than ${MOST} fields`);
  const [schema, nullable] = withoutNull(resolve(given, root), root);
  const id = `f${(ids += 1)}`;
  const about = { id, label, required, schema, nullable, root, depth };
  const values = valuesOf(schema, root);
  if (values && !values.some(isVague)) return choice(about, values);
  if (depth < DEPTH) {
    if (schema.type === 'object' && schema.properties) return object(about);
    if (schema.type === 'array' && schema.items && !Array.isArray(schema.items)) return list(about);
  }
  if (schema.type === 'boolean') return choice(about, [true, false]);
  if (schema.type === 'integer' || schema.type === 'number') return number(about);
  if (schema.type === 'string') return text(about);
  return raw(about);
}

function framed({ id, label, required, schema }, input) {
  const hint = [schema.title !== label && schema.title, schema.description].filter(Boolean).join('. ');
  input.id = id;
  if (hint) input.setAttribute('aria-describedby', `${id}-hint`);
  if (required) input.setAttribute('aria-required', 'true');
  return h('div', { class: 'field' }, h('label', { for: id }, label, required && h('span', { class: 'quiet' }, ' (required)')), input, hint && h('span', { class: 'hint', id: `${id}-hint` }, hint));
}

/** What `read` reads, or nothing if it throws. */
export function tried(read) {
  try {
    return read();
  } catch {
    return undefined;
  }
}

const missing = ({ label }) => new Error(`${label} is required`);
const unfit = ({ label }) => new Error(`${label || 'the whole'} has a value that its field cannot show`);

/** A control of one input: `show(part)` is the input's text for it (nothing: it has none), `read(text)` the way back. */
function single(about, input, { show, read }) {
  let given;
  let shown;
  return {
    element: framed(about, input),
    read: () => (given && input.value === shown ? given.text : read(input.value)),
    set(part) {
      given = part;
      if (!given) return;
      shown = given.type === 'null' && about.nullable ? '' : show(given);
      input.value = shown ?? '';
      // An input may change what it is given: a line has no line breaks.
      if (input.value !== shown) throw unfit(about);
    },
  };
}

function choice(about, values) {
  const texts = values.map((value) => JSON.stringify(value));
  const { required, nullable, schema } = about;
  const options = [...(required && values.length && schema.default === undefined ? [] : [['', 'not given']]), ...texts.map((text, index) => [text, typeof values[index] === 'string' ? values[index] : text]), ...(nullable ? [['null', 'null']] : [])];
  const input = h('select', {}, options.map(([value, text]) => h('option', { value }, text)));
  return single({ ...about, nullable: false }, input, { show: (part) => JSON.stringify(part.value), read: (text) => text || undefined });
}

function number(about) {
  const { schema, required, nullable } = about;
  const input = h('input', { inputmode: schema.type === 'integer' ? 'numeric' : 'decimal', autocomplete: 'off', placeholder: schema.default !== undefined ? String(schema.default) : undefined });
  const [low, high] = [schema.minimum ?? schema.exclusiveMinimum, schema.maximum ?? schema.exclusiveMaximum];
  const range = low !== undefined && high !== undefined ? `${low} to ${high}` : low !== undefined ? `at least ${low}` : high !== undefined ? `at most ${high}` : '';
  const told = range ? { ...about, schema: { ...schema, description: [schema.description, range].filter(Boolean).join(' · ') } } : about;
  return single(told, input, {
    show: (part) => (part.type === 'number' ? part.text : undefined),
    read(written) {
      const text = written.trim();
      if (!text) {
        if (required && !nullable) throw missing(about);
        return required ? 'null' : undefined;
      }
      if (!/^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i.test(text) || (schema.type === 'integer' && !/^-?\d+$/.test(text))) throw new Error(`${about.label} must be ${schema.type === 'integer' ? 'a whole number' : 'a number'}`);
      return text;
    },
  });
}

function text(about) {
  const { schema, required, nullable } = about;
  const long = schema.maxLength > 200 || ['html', 'markdown', 'text', 'textarea'].includes(schema.format) || schema.contentMediaType;
  const type = { email: 'email', uri: 'url' }[schema.format];
  const placeholder = schema.default ?? (typeof schema.examples?.[0] === 'string' ? schema.examples[0] : undefined);
  // Any other text may have lines.
  const input = type ? h('input', { type, autocomplete: 'off', spellcheck: 'false', placeholder }) : h('textarea', { rows: long ? '4' : '1', autocomplete: 'off', spellcheck: long ? undefined : 'false', placeholder });
  return single(about, input, {
    // What cannot be seen cannot be edited with open eyes.
    show: (part) => (part.type === 'string' && visible(part.value) === part.value ? part.value : undefined),
    read(written) {
      if (written === '') return required ? (nullable ? 'null' : '""') : undefined;
      return JSON.stringify(written);
    },
  });
}

function raw(about) {
  const input = h('textarea', { rows: '3', class: 'code', spellcheck: 'false', placeholder: 'JSON' });
  return single({ ...about, nullable: false }, input, {
    show: (part) => part.pretty,
    read(written) {
      if (!written.trim()) {
        if (about.required) throw missing(about);
        return undefined;
      }
      try {
        return Exact.parse(written).text;
      } catch (error) {
        throw new Error(`${about.label} is no JSON: ${error.message}`, { cause: error });
      }
    },
  });
}

function object(about) {
  const { schema, root, depth, required, nullable, label } = about;
  const wanted = schema.required ?? [];
  const members = new Map(Object.entries(schema.properties).map(([name, part]) => [name, control(part, root, { label: name, required: wanted.includes(name), depth: depth + 1 })]));
  const own = [...members.keys()];
  // A select may write something that nobody chose.
  const untouched = new Map(own.map((name) => [name, tried(() => members.get(name).read())]));
  let start;
  let order = own;
  const body = [...members.values()].map((member) => member.element);
  const legend = label && h('legend', {}, label, required && h('span', { class: 'quiet' }, ' (required)'));
  const note = schema.description && h('p', { class: 'hint' }, schema.description);
  return {
    element: label ? h('fieldset', { class: 'nested' }, legend, note, body) : h('div', {}, note, body),
    read() {
      const parts = [];
      let given = start?.type === 'object';
      let wrong;
      for (const name of order) {
        let written;
        try {
          written = members.get(name).read();
        } catch (error) {
          // What is wrong in an optional part counts only if something of it was given.
          if (required || !label || given) throw error;
          wrong ??= error;
          continue;
        }
        if (written === undefined) continue;
        given ||= written !== untouched.get(name);
        parts.push(`${JSON.stringify(name)}:${written}`);
      }
      if (!given && start) return start.text;
      if (!given && !required && label) return undefined;
      if (wrong) throw wrong;
      return `{${parts.join(',')}}`;
    },
    set(part) {
      start = part;
      if (!part || (part.type === 'null' && nullable)) return;
      const entries = part.type === 'object' ? part.entries() : [];
      const names = new Set(entries.map(([name]) => name));
      if (part.type !== 'object') throw unfit(about);
      if (names.size < entries.length) throw new Error('a member is there twice');
      for (const [name, value] of entries) {
        if (members.has(name)) members.get(name).set(value);
        // Members that the schema does not know are kept.
        else members.set(name, { read: () => value.text });
      }
      // In the order that they came in.
      order = [...names, ...own.filter((name) => !names.has(name))];
    },
  };
}

function list(about) {
  const { schema, root, depth, required, nullable, label } = about;
  const items = [];
  let start;
  const box = h('div', { class: 'items' });
  const draw = () =>
    put(
      box,
      items.map((item, index) =>
        h(
          'div',
          { class: 'item' },
          item.element,
          button('Remove', () => {
            items.splice(index, 1);
            draw();
          }, { 'aria-label': `Remove ${label ?? 'item'} ${index + 1}` }),
        ),
      ),
    );
  const add = (part) => {
    const item = control(schema.items, root, { label: `${label ?? 'item'} ${items.length + 1}`, required: true, depth: depth + 1 });
    item.set(part);
    items.push(item);
    return item;
  };
  const another = () => {
    room = MOST;
    const item = add();
    draw();
    item.element.querySelector('input, select, textarea')?.focus();
  };
  const content = [schema.description && h('p', { class: 'hint' }, schema.description), box, button('Add', another, { 'aria-label': `Add to ${label ?? 'the list'}` })];
  return {
    element: h('fieldset', { class: 'nested' }, h('legend', {}, label ?? 'Items', required && h('span', { class: 'quiet' }, ' (required)')), content),
    read() {
      if (!items.length && start) return start.type === 'null' ? start.text : '[]';
      return items.length || required ? `[${items.map((item) => item.read() ?? 'null').join(',')}]` : undefined;
    },
    set(part) {
      start = part;
      if (!part || (part.type === 'null' && nullable)) return;
      if (part.type !== 'array') throw unfit(about);
      part.entries().forEach(([, item]) => add(item));
      draw();
    },
  };
}

/** Whether a form says more than a text would; of a schema that is none `formOf` says so. */
export function isFormable(schema) {
  const whole = tried(() => withoutNull(resolve(schema, schema), schema)[0]);
  return !whole || Boolean(whole.type === 'object' && whole.properties && Object.keys(whole.properties).length) || whole.type === 'array' || ['string', 'number', 'integer', 'boolean'].includes(whole.type);
}

/** The form of a schema, which begins with `given`, if any. Throws if there is none, or none that would give back just that. */
export function formOf(schema, given) {
  room = MOST;
  try {
    const whole = resolve(schema, schema);
    const form = control(schema, schema, { label: whole.type === 'object' ? '' : 'Args', required: true, depth: 0 });
    form.set(given);
    if (given && new Exact(form.read() ?? '').line !== given.line) throw new Error('it would leave out or add something');
    return form;
  } catch (error) {
    // A schema that the server could not read either fails in ways of its own.
    throw new Error(`No form can show these args: ${error.constructor === Error ? error.message : 'the schema of the kind is not valid'}.`, { cause: error });
  }
}
