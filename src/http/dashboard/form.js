// A form from a JSON Schema: what it can show it shows, and the rest is JSON as text. The server checks what is sent; the form only
// helps to write it.

import { parse } from './api.js';
import { button, h, put } from './dom.js';
import { pretty } from './json.js';

/** Levels of objects and lists that get controls of their own. */
const DEPTH = 5;
let ids = 0;

/** What a `$ref` within the schema stands for. */
function resolve(schema, root, seen = 0) {
  if (typeof schema !== 'object' || schema === null) return {};
  const { $ref: reference, ...rest } = schema;
  if (typeof reference !== 'string' || !reference.startsWith('#/') || seen > 8) return schema;
  const target = reference
    .slice(2)
    .split('/')
    .reduce((part, name) => part?.[decodeURIComponent(name).replaceAll('~1', '/').replaceAll('~0', '~')], root);
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

/**
 * A control: `element`, `read()` for its JSON text (nothing: left out; throws what is wrong), `set(value)`.
 */
function control(given, root, { label, required, depth }) {
  const [schema, nullable] = withoutNull(resolve(given, root), root);
  const id = `f${(ids += 1)}`;
  const about = { id, label, required, schema, nullable, root, depth };
  if (Array.isArray(schema.enum)) return choice(about, schema.enum);
  if ('const' in schema) return choice(about, [schema.const]);
  const consts = (schema.oneOf ?? schema.anyOf)?.map((part) => resolve(part, root));
  if (consts?.length && consts.every((part) => 'const' in part)) return choice(about, consts.map((part) => part.const));
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

const missing = ({ label }) => new Error(`${label} is required`);

function choice(about, values) {
  const texts = values.map((value) => JSON.stringify(value));
  const { required, nullable, schema } = about;
  const options = [...(required && values.length && schema.default === undefined ? [] : [['', 'not given']]), ...texts.map((text, index) => [text, typeof values[index] === 'string' ? values[index] : text]), ...(nullable ? [['null', 'null']] : [])];
  const input = h('select', {}, options.map(([value, text]) => h('option', { value }, text)));
  return {
    element: framed(about, input),
    read: () => input.value || undefined,
    set(value) {
      const text = value === undefined ? '' : JSON.stringify(value);
      if (options.some(([known]) => known === text)) input.value = text;
    },
  };
}

function number(about) {
  const { schema, required, nullable } = about;
  const input = h('input', { inputmode: schema.type === 'integer' ? 'numeric' : 'decimal', autocomplete: 'off', placeholder: schema.default !== undefined ? String(schema.default) : undefined });
  const [low, high] = [schema.minimum ?? schema.exclusiveMinimum, schema.maximum ?? schema.exclusiveMaximum];
  const range = low !== undefined && high !== undefined ? `${low} to ${high}` : low !== undefined ? `at least ${low}` : high !== undefined ? `at most ${high}` : '';
  const told = range ? { ...about, schema: { ...schema, description: [schema.description, range].filter(Boolean).join(' · ') } } : about;
  return {
    element: framed(told, input),
    read() {
      const text = input.value.trim();
      if (!text) {
        if (required && !nullable) throw missing(about);
        return required ? 'null' : undefined;
      }
      if (!/^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i.test(text) || (schema.type === 'integer' && !/^-?\d+$/.test(text))) throw new Error(`${about.label} must be ${schema.type === 'integer' ? 'a whole number' : 'a number'}`);
      return text;
    },
    set: (value) => (input.value = value === undefined || value === null ? '' : pretty(value)),
  };
}

function text(about) {
  const { schema, required, nullable } = about;
  const long = schema.maxLength > 200 || ['html', 'markdown', 'text', 'textarea'].includes(schema.format) || schema.contentMediaType;
  const type = { email: 'email', uri: 'url' }[schema.format] ?? 'text';
  const placeholder = schema.default ?? (typeof schema.examples?.[0] === 'string' ? schema.examples[0] : undefined);
  const input = long ? h('textarea', { rows: '4', placeholder }) : h('input', { type, autocomplete: 'off', spellcheck: 'false', placeholder });
  return {
    element: framed(about, input),
    read() {
      if (input.value === '') return required ? (nullable ? 'null' : '""') : undefined;
      return JSON.stringify(input.value);
    },
    set: (value) => (input.value = typeof value === 'string' ? value : ''),
  };
}

function raw(about) {
  const input = h('textarea', { rows: '3', class: 'code', spellcheck: 'false', placeholder: 'JSON' });
  return {
    element: framed(about, input),
    read() {
      const written = input.value.trim();
      if (!written) {
        if (about.required) throw missing(about);
        return undefined;
      }
      try {
        parse(written);
      } catch (error) {
        throw new Error(`${about.label} is no JSON: ${error.message}`, { cause: error });
      }
      return written;
    },
    set: (value) => (input.value = value === undefined ? '' : pretty(value)),
  };
}

function object(about) {
  const { schema, root, depth, required, label } = about;
  const wanted = schema.required ?? [];
  const members = Object.entries(schema.properties).map(([name, part]) => [name, control(part, root, { label: name, required: wanted.includes(name), depth: depth + 1 })]);
  // Members that the schema does not know are kept.
  let rest = {};
  const body = members.map(([, member]) => member.element);
  const legend = label && h('legend', {}, label, required && h('span', { class: 'quiet' }, ' (required)'));
  const note = schema.description && h('p', { class: 'hint' }, schema.description);
  return {
    element: label ? h('fieldset', { class: 'nested' }, legend, note, body) : h('div', {}, note, body),
    read() {
      const parts = [];
      let given = false;
      for (const [name, member] of members) {
        let written;
        try {
          written = member.read();
        } catch (error) {
          // What is wrong in an optional part counts only if something of it was given.
          if (required || !label || given) throw error;
          parts.push(error);
          continue;
        }
        if (written === undefined) continue;
        given ||= written !== '""';
        parts.push(`${JSON.stringify(name)}:${written}`);
      }
      for (const [name, value] of Object.entries(rest)) parts.push(`${JSON.stringify(name)}:${pretty(value)}`);
      if (!given && !required && label && !Object.keys(rest).length) return undefined;
      const wrong = parts.find((part) => part instanceof Error);
      if (wrong) throw wrong;
      return `{${parts.join(',')}}`;
    },
    set(value) {
      const known = value !== null && typeof value === 'object' ? value : {};
      for (const [name, member] of members) member.set(known[name]);
      rest = Object.fromEntries(Object.entries(known).filter(([name]) => !members.some(([own]) => own === name)));
    },
  };
}

function list(about) {
  const { schema, root, depth, required, label } = about;
  const items = [];
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
  const add = (value) => {
    const item = control(schema.items, root, { label: `${label ?? 'item'} ${items.length + 1}`, required: true, depth: depth + 1 });
    if (value !== undefined) item.set(value);
    items.push(item);
    draw();
    return item;
  };
  const content = [schema.description && h('p', { class: 'hint' }, schema.description), box, button('Add', () => add().element.querySelector('input, select, textarea')?.focus(), { 'aria-label': `Add to ${label ?? 'the list'}` })];
  return {
    element: h('fieldset', { class: 'nested' }, h('legend', {}, label ?? 'Items', required && h('span', { class: 'quiet' }, ' (required)')), content),
    read: () => (items.length || required ? `[${items.map((item) => item.read() ?? 'null').join(',')}]` : undefined),
    set(value) {
      items.length = 0;
      draw();
      if (Array.isArray(value)) value.forEach(add);
    },
  };
}

/** Whether a form says more than a text would. */
export function isFormable(schema) {
  const [whole] = withoutNull(resolve(schema, schema), schema);
  return Boolean(whole.type === 'object' && whole.properties && Object.keys(whole.properties).length) || whole.type === 'array' || ['string', 'number', 'integer', 'boolean'].includes(whole.type);
}

/** The form of a schema. */
export function formOf(schema) {
  const whole = resolve(schema, schema);
  return control(schema, schema, { label: whole.type === 'object' ? '' : 'Args', required: true, depth: 0 });
}
