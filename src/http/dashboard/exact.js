// JSON as it was written. What JSON.parse would change (digits, the order of members, members that are there twice) stays, as
// parts of the text are looked at and never made again. Nothing calls itself for each level, so that depth costs no stack.

import { visible } from './dom.js';

/** Levels that get lines of their own in `pretty`. */
const DEEP = 30;

/** Where the string that begins at `at` ends. */
function endOfString(text, at) {
  let end = at;
  let slashes;
  do {
    end = text.indexOf('"', end + 1);
    for (slashes = 0; text[end - 1 - slashes] === '\\'; ) slashes += 1;
  } while (slashes % 2);
  return end + 1;
}

const opens = (token) => token === '[' || token === '{';
const closes = (token) => token === ']' || token === '}';

/** The tokens of JSON. */
function* tokens(text) {
  const looks = /["[\]{},:]|[^\s"[\]{},:]+/g;
  for (let found; (found = looks.exec(text)); ) {
    if (found[0] === '"') looks.lastIndex = endOfString(text, found.index);
    yield found[0] === '"' ? text.slice(found.index, looks.lastIndex) : found[0];
  }
}

/** A string as people read it: letters as such, and what cannot be seen as escapes, which mean the same. */
const legible = (token) => (token[0] === '"' ? visible(JSON.stringify(JSON.parse(token))) : token);

const TYPES = { '{': 'object', '[': 'array', '"': 'string', t: 'boolean', f: 'boolean', n: 'null' };

export class Exact {
  /** Of JSON that is known to be JSON. */
  constructor(text) {
    this.text = text;
  }

  /** Of what somebody wrote; throws if it is no JSON. */
  static parse(text) {
    JSON.parse(text);
    return new Exact(text.trim());
  }

  get type() {
    return TYPES[this.text[0]] ?? 'number';
  }

  get isBranch() {
    return this.type === 'object' || this.type === 'array';
  }

  /** As JavaScript has it. */
  get value() {
    return JSON.parse(this.text);
  }

  /** Its members or items: `[name, part]`. */
  entries() {
    const found = [];
    let depth = 0;
    let from = 1;
    const take = (to) => {
      const part = this.text.slice(from, to).trim();
      from = to + 1;
      if (!part) return;
      const end = this.type === 'object' && endOfString(part, 0);
      found.push(end ? [JSON.parse(part.slice(0, end)), new Exact(part.slice(part.indexOf(':', end) + 1).trim())] : [found.length, new Exact(part)]);
    };
    for (let at = 0; at < this.text.length; at += 1) {
      const mark = this.text[at];
      if (mark === '"') at = endOfString(this.text, at) - 1;
      else if (opens(mark)) depth += 1;
      else if (closes(mark)) depth -= 1;
      if (depth === 0 || (depth === 1 && mark === ',')) take(at);
    }
    return found;
  }

  /** For people: with lines and two spaces. */
  get pretty() {
    const parts = [];
    let depth = 0;
    let before = '';
    const line = (level) => depth <= DEEP && parts.push(`\n${'  '.repeat(level)}`);
    for (const token of tokens(this.text)) {
      if (before === ',' || opens(before) !== closes(token)) line(closes(token) ? depth - 1 : depth);
      if (closes(token)) depth -= 1;
      parts.push(token === ':' ? ': ' : legible(token));
      if (opens(token)) depth += 1;
      before = token;
    }
    return parts.join('');
  }

  /** For people, on one line: the same for all that says the same. */
  get line() {
    return Array.from(tokens(this.text), legible).join('');
  }
}

/** A name within an object as it is shown. */
export const shownName = (name) => (typeof name === 'string' ? visible(JSON.stringify(name)).slice(1, -1) : String(name));

/** What jobs and kinds say by members of these names is somebody else's JSON. */
const FOREIGN = ['args', 'output'];

function kept(part) {
  if (!part.isBranch) return part.value;
  const entries = part.entries().map(([name, inner]) => [name, FOREIGN.includes(name) ? inner : kept(inner)]);
  return part.type === 'array' ? entries.map(([, inner]) => inner) : Object.fromEntries(entries);
}

/** Reads an answer in which args, output and their schemas stay as they were written. */
export const keep = (text) => kept(Exact.parse(text));
