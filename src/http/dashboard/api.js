// Calls of the HTTP interface (`docs/http.md`), and what the session may do.

import { keep } from './exact.js';

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

function address(path, query) {
  const pairs = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== '');
  return pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path;
}

/** Makes a call; its answer as JSON, by `read`. Throws a `Problem`. */
export async function call(method, path, { query, body, key, signal, read = JSON.parse } = {}) {
  const headers = { accept: 'application/json' };
  if (body !== undefined) headers['content-type'] = 'application/json';
  if (key) headers['idempotency-key'] = key;
  let response;
  let text;
  try {
    response = await fetch(address(path, query), { method, headers, body, signal, cache: 'no-store', credentials: 'same-origin' });
    text = await response.text();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { title: 'The server cannot be reached', detail: 'it does not answer, or the network is down', code: 'unreachable' });
  }
  let value = null;
  try {
    value = text ? (response.ok ? read(text) : JSON.parse(text)) : null;
  } catch (error) {
    // Something in between has answered. What was asked for may have been done: that is no refusal.
    if (response.ok) throw new Problem(0, { title: 'The answer cannot be read', detail: `status ${response.status}, ${error.message}`, code: 'unreadable' });
  }
  if (response.ok) return value;
  if (response.status === 401) logIn();
  throw new Problem(response.status, value ?? { title: 'The server did not answer as it should', detail: `status ${response.status}` });
}

export const get = (path, query, signal) => call('GET', path, { query, signal });

/** Args, output and their schemas are `Exact`. */
export const getJob = (id) => call('GET', `/v1/jobs/${encodeURIComponent(id)}`, { read: keep });
export const getKinds = () => call('GET', '/v1/kinds', { read: keep });

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
