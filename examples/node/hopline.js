// Hopline for Node.js, over AMQP alone: messages, and a producer and caller (docs/wire.md). Needs Node 20 and amqplib.
// The worker is worker-lib.js.

import { createHash, randomUUID } from 'node:crypto';
import amqp from 'amqplib';

export const LIMITS = { args: 1 << 20, headers: 64 << 10, inline: 64 << 10, output: 1 << 20, depth: 64 };
export const KIND = /^[a-z0-9_-]+(\.[a-z0-9_-]+)*$/;
const DEATH = ['reason', 'error-code', 'error', 'attempts', 'worker', 'died-at', 'queue', 'headers-dropped'].map((n) => `hopline-${n}`);
const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i;
const FOREIGN = '6d1f31b7-59a5-4c1e-8f0e-2f6a90c577d3';
export const CALLBACK = '0b1f5c5e-3f0a-4d57-9a35-6a8e71d4c2b6';

/** Thrown by a handler: trying again is pointless. The job is dead at once. */
export class Fatal extends Error {
  constructor(code, message = '') {
    super(message);
    this.code = code;
  }
}

/** Thrown by a handler: an attempt failed; the next one after `after` seconds, or the usual pause. */
export class Retry extends Fatal {
  constructor(code, message = '', after = undefined) {
    super(code, message);
    this.after = after;
  }
}

/** Thrown by a handler: nothing failed, run this attempt again after `after` seconds. */
export class Snooze extends Error {
  constructor(after) {
    super(`snoozed for ${after} s`);
    this.after = after;
  }
}

/** Exchange and routing key of a job that is to run after `delay` milliseconds (the delay ladder). */
export function route(queue, kind, delay = 0, prefix = 'hopline') {
  const address = `${queue}.normal.${kind}`;
  const ticks = Math.ceil(delay / 100);
  if (ticks <= 0) return [`${prefix}.direct`, `${queue}.normal`];
  if (ticks >= 2 ** 28) throw new RangeError('longer than the ladder');
  const level = ticks.toString(2).length - 1;
  const bits = ticks.toString(2).padStart(28, '0').split('').join('.');
  return [`${prefix}.delay.${String(level).padStart(2, '0')}`, `${bits}.${address}`];
}

/** A UUID version 8, derived from texts in a namespace. */
export function derive(namespace, ...parts) {
  const space = Buffer.from(namespace.replaceAll('-', ''), 'hex');
  const hash = createHash('sha1').update(space).update(parts.join('\0')).digest().subarray(0, 16);
  hash[6] = (hash[6] & 0x0f) | 0x80;
  hash[8] = (hash[8] & 0x3f) | 0x80;
  return hash.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

export const rfc3339 = (ms) => new Date(ms).toISOString();

/** `text` cut to so many bytes of UTF-8. */
export function clip(text, bytes) {
  const all = Buffer.from(String(text));
  let end = Math.min(all.length, bytes);
  while (end < all.length && end > 0 && (all[end] & 0xc0) === 0x80) end -= 1;
  return all.subarray(0, end).toString();
}

// Larger integers than 32 bits are sent as 64-bit ones; amqplib would send some of them as doubles.
const long = (value) => ({ '!': 'long', value });

/** Headers as amqplib sends them. */
export function headersOf(values) {
  const large = (value) => Number.isInteger(value) && Math.abs(value) > 2 ** 31 - 1;
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, large(value) ? long(value) : value]));
}

/** A work queue, its dead-letter queue and their bindings: exactly as Hopline declares them. */
export async function declare(channel, prefix, queue) {
  const [work, dead] = [`${prefix}.q.${queue}`, `${prefix}.q.${queue}.dead`];
  await channel.assertQueue(dead, { durable: true, arguments: { 'x-queue-type': 'quorum', 'x-delivery-limit': 2147483647 } });
  await channel.bindQueue(dead, `${prefix}.dead`, `${queue}.#`);
  await channel.assertQueue(work, {
    durable: true,
    arguments: {
      'x-queue-type': 'quorum', 'x-delivery-limit': 1000, 'x-overflow': 'reject-publish',
      'x-dead-letter-exchange': `${prefix}.strays`, 'x-dead-letter-routing-key': queue,
      'x-dead-letter-strategy': 'at-least-once',
    },
  });
  await channel.bindQueue(work, `${prefix}.direct`, `${queue}.normal`);
  await channel.bindQueue(work, `${prefix}.jobs`, `${queue}.normal.#`);
  await channel.bindQueue(work, `${prefix}.delay.ready`, `${'*.'.repeat(28)}${queue}.normal.#`);
}

/** Publishes and waits for the confirm; refuses what no queue takes, which is confirmed, too, but returned first. */
export class Publisher {
  static async open(connection) {
    const publisher = new Publisher();
    publisher.channel = await connection.createConfirmChannel();
    publisher.returned = new Set();
    publisher.channel.on('return', (message) => publisher.returned.add(message.properties.messageId));
    publisher.channel.on('error', () => {}); // publishes on their way fail with it
    return publisher;
  }

  async publish([exchange, key], body, properties) {
    // Each publish has a message id of its own here but for copies of one job, which follow one another.
    const messageId = properties.messageId ?? randomUUID();
    const options = { persistent: true, contentType: 'application/json', mandatory: true, ...properties, messageId };
    await new Promise((resolve, reject) => {
      this.channel.publish(exchange, key, body, options, (error) => (error ? reject(error) : resolve()));
    });
    if (this.returned.delete(messageId)) {
      throw Object.assign(new Error(`no queue takes ${key} at ${exchange}`), { unroutable: true });
    }
  }
}

/** Submits and calls jobs. */
export class Client {
  static async connect(url, prefix = 'hopline') {
    const client = new Client();
    client.prefix = prefix;
    client.connection = await amqp.connect(url);
    client.connection.on('error', () => {});
    client.publisher = await Publisher.open(client.connection);
    client.replies = new Map();
    return client;
  }

  /** Returns the job's id when the broker has the job on disk. After an error that is not `unroutable` it may be there:
   * repeat with the same `id` and `unsure`. */
  async submit(queue, kind, args, { id = randomUUID(), delay = 0, unsure = false, headers = {}, ...properties } = {}) {
    const now = Date.now();
    const more = { 'hopline-version': 1, 'hopline-created-at': now, ...headers };
    if (delay > 0) {
      // The ladder takes it although the queue may not exist; a failed check closes its channel.
      const channel = await this.connection.createChannel();
      channel.on('error', () => {});
      await channel.checkQueue(`${this.prefix}.q.${queue}`);
      await channel.close();
      more['hopline-due-at'] = now + delay * 1000;
    }
    if (unsure) more['hopline-unsure'] = true;
    await this.publisher.publish(route(queue, kind, delay * 1000, this.prefix), Buffer.from(JSON.stringify(args)), {
      type: kind, messageId: id, appId: 'node-example', headers: headersOf(more), ...properties,
    });
    return id;
  }

  /** Runs a job and returns its output. */
  async call(queue, kind, args, { wait = 10, maxAttempts = 1 } = {}) {
    if (!this.replyTo) {
      this.replyTo = `${this.prefix}.replies.node-${randomUUID()}`;
      const channel = await this.connection.createChannel();
      await channel.assertQueue(this.replyTo, { exclusive: true, autoDelete: true, durable: false });
      await channel.bindQueue(this.replyTo, `${this.prefix}.replies`, this.replyTo);
      await channel.consume(this.replyTo, (reply) => this.replies.get(reply?.properties.correlationId)?.(reply), { noAck: true });
    }
    const id = randomUUID();
    let timer;
    const reply = new Promise((resolve, reject) => {
      this.replies.set(id, resolve);
      timer = setTimeout(() => reject(new Error(`no reply within ${wait} s: ${id}`)), wait * 1000);
    });
    try {
      // Nobody waits after that: let no attempt start then.
      const headers = { 'hopline-max-attempts': maxAttempts, 'hopline-expires-at': Date.now() + wait * 1000 };
      await this.submit(queue, kind, args, { id, replyTo: this.replyTo, correlationId: id, headers });
      const { properties, content } = await reply;
      const body = JSON.parse(content);
      if (properties.headers['hopline-status'] === 'succeeded') return body;
      throw new Error(`${properties.headers['hopline-status']}: [${body.code}] ${body.message}`);
    } finally {
      clearTimeout(timer);
      this.replies.delete(id);
    }
  }

  close() {
    return this.connection.close();
  }
}

/** A job message, as far as it can be read, and what its handler may ask. */
export class Job {
  constructor(message, queue, handlers) {
    const { properties, content } = message;
    const raw = properties.headers ?? {};
    const isCarried = ([name]) => !name.startsWith('x-') && !['CC', 'BCC', 'hopline-due-at'].includes(name);
    Object.assign(this, { properties, body: content, raw, kind: properties.type, how: handlers[properties.type] });
    this.headers = Object.fromEntries(Object.entries(raw).filter(isCarried));
    const text = properties.messageId;
    this.id = text ? (UUID.test(text) ? text.toLowerCase() : derive(FOREIGN, queue, text)) : undefined;
    Object.assign(this, { run: 1, attempt: 1, step: 0, patience: 0, tags: [], stop: new AbortController(), said: { n: 0, at: 0 } });
    const wasDead = 'hopline-reason' in raw; // somebody moved it here from the dead-letter queue: its next run
    for (const [name, low] of [['run', 1], ['attempt', 1], ['step', 0], ['patience', 0]]) {
      try {
        this[name] = this.#number(name, { low }) ?? low;
      } catch {
        // Where it stands is said of a message that cannot be read, too: at the beginning.
      }
    }
    if (wasDead) {
      for (const name of [...DEATH, 'hopline-expires-at']) delete this.headers[name];
      Object.assign(this, { run: this.run + 1, attempt: 1, step: 0, patience: 0 });
    }
    try {
      this.#read(wasDead);
    } catch (error) {
      if (!error.reason) throw error;
      this.unfit = { reason: error.reason, message: error.message };
    }
  }

  #number(name, { low = 0, high = Number.MAX_SAFE_INTEGER, whole = true } = {}) {
    let value = this.raw[`hopline-${name}`];
    if (value === undefined || value === null) return undefined;
    if (value?.['!'] === 'timestamp') value = value.value * 1000;
    const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
    if (typeof number !== 'number' || !(number >= low && number <= high) || (whole && !Number.isInteger(number))) {
      throw unfit('undecodable', `hopline-${name} is ${JSON.stringify(value)}`);
    }
    return number;
  }

  /** Everything, in the order in which it must be readable. */
  #read(wasDead) {
    if (this.body.length > LIMITS.args) throw unfit('oversize', `${this.body.length} bytes of args`);
    if (JSON.stringify(this.raw).length > LIMITS.headers) throw unfit('oversize', 'too many headers');
    const version = this.#number('version') ?? 1;
    if (version > 1) throw unfit('unsupported_version', `version ${version} of the wire contract`);
    if (!KIND.test(this.kind ?? '') || this.kind.length > 100) throw unfit('undecodable', `type is ${this.kind}`);
    for (const [name, low] of [['run', 1], ['attempt', 1], ['step', 0], ['patience', 0]]) this.#number(name, { low });
    this.ownMaxAttempts = this.#number('max-attempts', { low: 1, high: 1000 });
    this.timeout = this.#number('timeout-ms') || this.how?.timeout;
    this.createdAt = this.#number('created-at');
    this.expiresAt = wasDead ? undefined : this.#number('expires-at');
    this.retry = {
      initial: this.#number('retry-initial-ms') ?? this.how?.initial,
      factor: this.#number('retry-factor', { low: 1, high: 100, whole: false }) ?? this.how?.factor,
      longest: this.#number('retry-max-ms') ?? this.how?.longest,
      jitter: this.#number('retry-jitter', { high: 1, whole: false }) ?? this.how?.jitter,
    };
    this.unsure = ['true', '1'].includes(String(this.raw['hopline-unsure'] ?? false).toLowerCase());
    this.tags = String(this.raw['hopline-tags'] ?? '').split(',').filter(Boolean);
    let depth = 0;
    let text;
    try {
      text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.body);
      this.args = JSON.parse(text);
    } catch (error) {
      throw unfit('undecodable', `the body is no JSON: ${error.message}`);
    }
    for (const bracket of text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"/g, '').match(/[[\]{}]/g) ?? []) {
      depth += '[{'.includes(bracket) ? 1 : -1;
      if (depth > LIMITS.depth) throw unfit('undecodable', 'the body is too deep');
    }
  }

  get maxAttempts() {
    return this.ownMaxAttempts ?? this.how?.maxAttempts;
  }

  /** Aborted when the handler should end: its time is over, or the job is to be cancelled. */
  get signal() {
    return this.stop.signal;
  }

  /** The headers of this job published once more. */
  copy(changes = {}) {
    const { run, attempt, step, patience } = this;
    // What cannot be read stays as it came: somebody else may understand it.
    const names = this.unfit ? changes : { version: 1, run, attempt, step, patience, ...changes };
    const named = Object.entries(names).map(([name, value]) => [`hopline-${name}`, value]);
    return headersOf({ ...this.headers, ...Object.fromEntries(named) });
  }

  pause(after) {
    if (after !== undefined) return after * 1000;
    const { initial, factor, longest, jitter } = this.retry;
    const pause = Math.min(longest, initial * factor ** Math.min(this.attempt - 1, 200));
    return pause * (1 - jitter + 2 * jitter * Math.random());
  }
}

const unfit = (reason, message) => Object.assign(new Error(message), { reason });
