// Calls of the HTTP interface (`docs/http.md`), and what the session may do.

/** What went wrong: a problem of the server (RFC 9457), or that it cannot be reached. */
export class Problem extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `status ${status}`);
    this.status = status;
    this.code = problem.code ?? '';
    this.title = problem.title ?? 'The request failed';
    this.errors = problem.errors ?? [];
  }

  /** All of it, in one line. */
  get text() {
    const where = ({ pointer, parameter, header }) => parameter ?? header ?? (pointer || 'body');
    const parts = this.errors.map((error) => `${where(error)}: ${error.detail}`);
    return parts.length ? `${this.title}: ${parts.join('; ')}` : `${this.title}: ${this.message}`;
  }
}

/** A number as it was written, where JavaScript's would lose digits. */
export class Exact {
  constructor(source) {
    this.source = source;
  }
}

/** Reads JSON; numbers that JavaScript cannot hold stay as they were written, where the browser tells how. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const source = typeof value === 'number' ? context?.source : undefined;
    return source !== undefined && loses(value, source) ? new Exact(source) : value;
  });
}

/** Whether digits of a number are lost when it is read. */
function loses(value, source) {
  const digits = source.replace(/e.*$/i, '').replace(/[-.]/g, '').replace(/^0+/, '');
  return !Number.isFinite(value) || (digits.length > 15 && String(value) !== source);
}

function address(path, query) {
  const pairs = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== '');
  return pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path;
}

/** Makes a call; its answer as JSON. Throws a `Problem`. */
export async function call(method, path, { query, body, key, signal } = {}) {
  const headers = { accept: 'application/json' };
  if (body !== undefined) headers['content-type'] = 'application/json';
  if (key) headers['idempotency-key'] = key;
  let response;
  try {
    response = await fetch(address(path, query), { method, headers, body, signal, cache: 'no-store', credentials: 'same-origin' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { title: 'The server cannot be reached', detail: 'it does not answer, or the network is down', code: 'unreachable' });
  }
  const text = await response.text();
  let value = null;
  try {
    value = text ? parse(text) : null;
  } catch {
    // Something in between has answered.
  }
  if (response.ok) return value;
  if (response.status === 401) logIn();
  throw new Problem(response.status, value ?? { title: 'The server did not answer as it should', detail: `status ${response.status}` });
}

export const get = (path, query, signal) => call('GET', path, { query, signal });

/** A name for a request, so that a repeat does nothing twice. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `dashboard-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

/** Who asks, and what the one may do. */
export const session = { keys: false, scopes: [], can: (scope) => session.scopes.includes(scope) };

export async function readSession() {
  Object.assign(session, { name: undefined, queues: undefined, trace_url: undefined }, await get('/session'));
}

/** Asks for a key, and comes back here. */
export function logIn() {
  location.assign(`/login?${new URLSearchParams({ next: location.pathname + location.search })}`);
}
