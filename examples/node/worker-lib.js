// A worker for Hopline in Node.js: takes jobs from one queue, also beside workers in Rust (docs/wire.md).
//
// One connection for what comes, one for what is published: an alarm of the broker blocks one that publishes, with its
// acks. Each step of settling a job is confirmed by the broker before the next one, and the ack comes last: a crash
// repeats work at worst. A lost connection ends the process with exit code 1, and whoever started it starts it again.
// README.md says what is not done.

import { randomUUID } from 'node:crypto';
import os from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import amqp from 'amqplib';
import { CALLBACK, Fatal, Job, KIND, LIMITS, Publisher, Retry, Snooze, clip, declare, derive, headersOf, rfc3339, route } from './hopline.js';

const FINAL = ['succeeded', 'dead', 'cancelled', 'expired'];
const USUAL = { maxAttempts: 20, timeout: 600_000, initial: 1000, factor: 2, longest: 43_200_000, jitter: 0.2 };

/** Runs `handlers` (kind: {run, …USUAL}) for the jobs of `queue` until SIGTERM; returns the exit code. */
export class Worker {
  constructor(url, queue, handlers, options = {}) {
    const defaults = { prefix: 'hopline', concurrency: 10, grace: 25_000, cancelGrace: 10_000, patience: 5, lookupPatience: 60_000, directReplies: false };
    Object.assign(this, { url, queue, ...defaults, ...options });
    this.handlers = Object.fromEntries(Object.entries(handlers).map(([kind, how]) => [kind, { ...USUAL, ...how }]));
    this.name = `${os.hostname()}-${process.pid}-${randomUUID().slice(0, 6)}`;
    this.replyTo = `${this.prefix}.replies.${this.name}.1`;
    this.since = Date.now();
    this.running = new Set();
    this.known = new Map(); // id, run and step of the last jobs: the promise of their end
    this.orders = new Map();
    this.questions = new Map();
    this.blindUntil = 0;
    this.paused = false;
    this.ended = new Promise((resolve) => {
      this.end = (why) => {
        if (!this.drained) this.failed ??= why;
        this.stopping = true;
        resolve();
      };
    });
  }

  async run() {
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => this.end());
    const connect = async () => {
      const connection = await amqp.connect(this.url);
      connection.on('error', () => {});
      connection.on('close', () => {
        this.lost = true;
        this.end('a connection was lost');
      });
      return connection;
    };
    const channelOf = async (connection) => {
      const channel = await connection.createChannel();
      channel.on('error', (error) => {
        this.lost = true;
        this.end(`the broker has closed a channel: ${error.message}`);
      });
      return channel;
    };
    const [input, output] = [await connect(), await connect()];
    this.publisher = await Publisher.open(output);
    this.publisher.channel.on('close', () => this.end('the publishing channel was closed'));
    this.loose = await channelOf(output);
    this.channel = await channelOf(input);
    await declare(this.channel, this.prefix, this.queue);
    await this.channel.prefetch(this.concurrency); // nothing waits here for its turn
    const side = await channelOf(input);
    await side.assertQueue(this.replyTo, { exclusive: true, autoDelete: true, durable: false });
    await side.bindQueue(this.replyTo, `${this.prefix}.replies`, this.replyTo);
    await side.consume(this.replyTo, (message) => message && this.#onAnswer(message), { noAck: true });
    await this.#announce();
    const log = await channelOf(input);
    await log.prefetch(500);
    const read = new Promise((resolve) => { this.caughtUp = resolve; });
    await log.consume(`${this.prefix}.control.log`, (message) => {
      if (!message) return this.end('the control log is gone');
      log.ack(message);
      this.#onControl(message);
    }, { arguments: { 'x-stream-offset': 'first' } });
    await Promise.race([read, this.ended]); // what was ordered before is known now
    await this.#takeOrLeave();
    const beat = setInterval(() => this.#heartbeat(), 5000);
    const word = setInterval(() => this.#announce().catch((error) => this.end(error.message)), 3_600_000);
    this.#heartbeat();
    await this.ended;
    for (const timer of [beat, word]) clearInterval(timer);
    await this.#drain();
    await Promise.race([Promise.allSettled([input.close(), output.close()]), sleep(5000)]);
    console.error(`stopped, ${this.running.size} jobs left to others${this.failed ? `: ${this.failed}` : ''}`);
    return this.failed ? 1 : 0;
  }

  /** Takes nothing more, lets what runs end within the grace, and leaves the rest to the broker: no attempt is spent. */
  async #drain() {
    if (this.tag && !this.lost) await this.channel.cancel(this.tag).catch(() => {});
    const deadline = Date.now() + this.grace;
    while (this.running.size > 0 && Date.now() < deadline) await sleep(50);
    this.#heartbeat(true);
    this.drained = true;
  }

  async #takeOrLeave() {
    if (this.stopping) return;
    if (!this.paused && !this.tag) {
      const take = (message) => (message ? this.#onJob(message) : this.end('the queue is gone'));
      this.tag = (await this.channel.consume(`${this.prefix}.q.${this.queue}`, take)).consumerTag;
    } else if (this.paused && this.tag) {
      const { tag } = this;
      this.tag = undefined;
      await this.channel.cancel(tag);
    }
  }

  #onControl({ properties, content }) {
    const offset = Number(properties.headers?.['x-stream-offset'] ?? 0);
    if (!this.started && offset > 0) this.blindUntil = (properties.timestamp ?? Date.now() / 1000) * 1000 + 60_000; // older orders may be gone
    this.started = true;
    if (properties.messageId === this.mark) this.caughtUp();
    let record;
    try {
      record = JSON.parse(content);
      if (properties.type === 'hopline.front') this.fronts = true;
      if (properties.type === 'hopline.pause' && record.queue === this.queue) {
        // The latest holds; of equal ones a pause, then the greater `by`.
        const key = [Date.parse(record.at), record.paused ? 1 : 0, record.by ?? ''];
        const order = this.pauseKey ? key.findIndex((part, i) => part !== this.pauseKey[i]) : 0;
        if (!this.pauseKey || (order >= 0 && key[order] > this.pauseKey[order])) {
          this.pauseKey = key;
          this.paused = record.paused;
          if (this.fenceOpen) this.#takeOrLeave().catch((error) => this.end(error.message));
        }
      }
      if (properties.type === 'hopline.cancel') for (const order of record.orders) this.#order(record, order);
    } catch (error) {
      console.error(`a record of the control log is passed over: ${error.message}`);
    }
    if (properties.messageId === this.mark) this.fenceOpen = true;
  }

  #order(record, { id, run, at, by = record.by, reason = record.reason }) {
    const key = `${id} ${run}`;
    const order = { at: Date.parse(at), by, reason };
    const first = this.orders.get(key);
    if (!first || order.at < first.at) this.orders.set(key, order);
    if (this.orders.size > 500_000) {
      const [oldest, { at: then }] = this.orders.entries().next().value;
      this.orders.delete(oldest);
      this.blindUntil = Math.max(this.blindUntil, then + 60_000);
    }
    for (const job of this.running) {
      if (job.id === id && job.run === run) {
        job.order = order;
        job.stop.abort(new Error('cancelled'));
      }
    }
  }

  #onAnswer({ properties, content }) {
    this.silent = false;
    clearInterval(this.probe);
    this.questions.get(properties.correlationId)?.(JSON.parse(content).jobs ?? []);
  }

  // A delivery, up to its ack.

  #onJob(message) {
    if (this.stopping || this.paused) return this.channel.nack(message);
    const job = new Job(message, this.queue, this.handlers);
    this.running.add(job);
    const work = async () => {
      const key = job.id && `${job.id} ${job.run} ${job.step}`;
      const twin = this.known.get(key);
      if (twin) {
        await twin; // it runs here, or has run: this delivery is acknowledged with it
      } else {
        const mine = this.#decide(job, message.fields);
        if (key) this.known.set(key, mine);
        if (this.known.size > 20_000) this.known.delete(this.known.keys().next().value);
        await mine;
      }
      if (!this.lost && !this.drained) this.channel.ack(message);
    };
    work()
      .catch((error) => this.end(`job ${job.id} is left to others: ${error.message}`)) // not acknowledged
      .finally(() => this.running.delete(job));
  }

  async #decide(job, fields) {
    const adopted = !job.id;
    job.id ??= randomUUID();
    if (job.unfit) return this.#notKnown(job, job.unfit, job.unfit.reason === 'unsupported_version');
    // It comes back as a job with an id: each delivery would make another one.
    if (adopted) return this.#publish(job, route(this.queue, job.kind, 0, this.prefix), job.copy());
    const doubtful = fields.redelivered || ![`${this.prefix}.direct`, `${this.prefix}.jobs`].includes(fields.exchange) || job.unsure || (job.createdAt ?? 0) <= this.blindUntil;
    if (doubtful && (await this.#hasEnded(job))) return undefined;
    job.order ??= this.orders.get(`${job.id} ${job.run}`);
    if (job.order) return this.#cancelled(job);
    if (!job.how) return this.#notKnown(job, { reason: 'unknown_kind', message: `no worker of queue ${this.queue} knows ${job.kind}` }, true);
    if (job.expiresAt <= Date.now()) {
      const event = await this.#tell(job, 'expired', {}, this.#args(job));
      await this.#callback(job);
      return this.#reply(job, 'expired', JSON.stringify({ code: 'expired', message: 'expired before an attempt' }), event);
    }
    return this.#attempt(job);
  }

  /** Dead, or again later: a deploy may be under way. */
  #notKnown(job, { reason, message }, patience) {
    if (!patience || job.patience >= this.patience) return this.#bury(job, reason, { code: reason, message });
    return this.#again(job, 'scheduled', 2000 * 2 ** job.patience, { patience: job.patience + 1 });
  }

  async #attempt(job) {
    const startedAt = Date.now();
    let timedOut = false;
    // Dropped where it does not end in time after it was asked to: its promise goes on, its result counts no more.
    const dropped = new Promise((_, reject) => {
      job.signal.addEventListener('abort', () => setTimeout(() => reject(new Error('did not stop when it was told to')), this.cancelGrace).unref());
    });
    dropped.catch(() => {});
    const soon = setTimeout(() => this.#post(job, 'started', { started_at: rfc3339(startedAt) }), 250);
    const late = setTimeout(() => {
      timedOut = true;
      job.stop.abort(new Error('timeout'));
    }, Math.min(job.timeout, 2 ** 31 - 1));
    job.progress = (percent, message = '') => {
      job.untold = { percent: Math.trunc(percent), message: clip(message, 1024), n: job.said.n + 1 };
      if (Date.now() - job.said.at >= 1000) this.#progress(job);
    };
    let error;
    let output;
    try {
      output = Buffer.from(JSON.stringify((await Promise.race([job.how.run(job), dropped])) ?? null));
    } catch (thrown) {
      error = thrown ?? new Error('thrown without an error');
    }
    for (const timer of [soon, late]) clearTimeout(timer);
    this.#progress(job);
    const ran = { started_at: rfc3339(startedAt), finished_at: rfc3339(Date.now()) };
    if (!error) {
      const told = { output: output.length <= LIMITS.inline ? output : null, ...this.#args(job) };
      const event = await this.#tell(job, 'succeeded', { ...ran, outcome: 'succeeded' }, told);
      await this.#callback(job);
      return this.#reply(job, 'succeeded', output.length <= LIMITS.output ? output : null, event);
    }
    if (job.order) return this.#cancelled(job, { ...ran, outcome: 'cancelled' });
    if (error instanceof Snooze) return this.#again(job, 'scheduled', error.after * 1000, {}, { ...ran, outcome: 'snoozed' });
    const fatal = !timedOut && error instanceof Fatal && !(error instanceof Retry);
    const said = { code: clip(timedOut ? 'timeout' : error instanceof Fatal ? error.code : 'error', 100), message: clip(error.message ?? error, 4096) };
    ran.outcome = timedOut ? 'timed_out' : fatal ? 'fatal' : 'failed';
    if (fatal || job.attempt >= job.maxAttempts) return this.#bury(job, fatal ? 'fatal' : 'exhausted', said, ran);
    return this.#again(job, 'retrying', job.pause(error.after), { attempt: job.attempt + 1, patience: 0 }, { ...ran, error: said });
  }

  #progress(job) {
    if (!job.untold) return;
    job.said = { n: job.untold.n, at: Date.now() };
    this.#post(job, 'progress', { progress: job.untold });
    job.untold = undefined;
  }

  // Settling: the order is what makes it safe.

  async #cancelled(job, ran = {}) {
    const { by, reason } = job.order;
    const event = await this.#tell(job, 'cancelled', { ...ran, by, reason }, this.#args(job));
    await this.#callback(job);
    this.#reply(job, 'cancelled', JSON.stringify({ code: 'cancelled', message: reason ?? 'cancelled' }), event);
  }

  async #bury(job, reason, error, ran) {
    const event = await this.#tell(job, 'dead', { reason, error, ...ran }, this.#args(job));
    await this.#deadLetter(job, reason, error, ran ? job.attempt : 0);
    await this.#callback(job);
    this.#reply(job, 'dead', JSON.stringify(error), event);
  }

  async #deadLetter(job, reason, error, attempts, worker = this.name, more = {}) {
    const marks = { reason, 'error-code': error.code, error: error.message, attempts, worker: clip(worker, 200), 'died-at': Date.now(), ...more };
    let headers = job.copy(marks);
    if (JSON.stringify(job.headers).length > LIMITS.headers) {
      const added = Object.keys(headers).filter((name) => !(name in job.headers));
      headers = { ...Object.fromEntries(added.map((name) => [name, headers[name]])), 'hopline-headers-dropped': true };
    }
    await this.#publish(job, [`${this.prefix}.dead`, `${this.queue}.${job.how ? job.kind : 'unknown'}`], headers);
  }

  /** The copy first, then the event that says that it exists. */
  async #again(job, event, delay, changes, data = {}) {
    const at = Date.now() + Math.ceil(delay);
    const kind = KIND.test(job.kind ?? '') ? job.kind : 'unknown';
    const headers = job.copy({ step: job.step + 1, 'due-at': at, ...changes });
    await this.#publish(job, route(this.queue, kind, delay, this.prefix), headers);
    await this.#tell(job, event, { ...data, run_at: rfc3339(at) });
  }

  /** A copy of a job. What must not be carried over is not in here. */
  #publish(job, where, headers) {
    if (this.lost) throw new Error('the broker has taken this delivery back');
    const { type, replyTo, correlationId, appId } = job.properties;
    return this.publisher.publish(where, job.body, { type, replyTo, correlationId, appId, messageId: job.id, headers });
  }

  /** Nobody has told the args of a job that no process of Hopline's submitted: its end does, as they came. */
  #args(job) {
    if (job.properties.appId?.startsWith('hopline-')) return {};
    return { args: job.body.length <= LIMITS.inline && !job.unfit ? job.body : null };
  }

  #post(job, name, data) {
    this.#tell(job, name, data).catch((error) => this.end(error.message));
  }

  /** An event into the log, until it is confirmed. `raw`: args and output as JSON bytes, null where they are too long. */
  async #tell(job, name, data, raw = {}) {
    // Whoever has the delivery now decides; a success, and a copy that exists, are true all the same.
    if (this.lost && !['succeeded', 'retrying', 'scheduled'].includes(name)) throw new Error('the broker has taken this delivery back');
    const kind = KIND.test(job.kind ?? '') ? job.kind : undefined;
    const tail = { started: `:${this.name}`, progress: `:${this.name}:${data.progress?.n}` }[name] ?? '';
    const all = {
      kind, queue: this.queue, run: job.run, attempt: job.attempt, step: job.step, max_attempts: job.maxAttempts,
      created_at: job.createdAt && rfc3339(job.createdAt), expires_at: job.expiresAt && rfc3339(job.expiresAt),
      tags: job.tags.length > 0 ? job.tags : undefined, worker: this.name, ...data,
    };
    for (const [member, bytes] of Object.entries(raw)) if (bytes === null) all[`${member}_omitted`] = true;
    const event = {
      specversion: '1.0', id: `${job.id}:${job.run}:${job.step}:${name}${tail}`, source: this.name,
      type: `hopline.job.${name}`, subject: job.id, time: rfc3339(Date.now()), data: all,
    };
    let text = JSON.stringify(event);
    // Byte for byte: no number loses its digits.
    for (const [member, bytes] of Object.entries(raw)) if (bytes !== null) text = `${text.slice(0, -2)},"${member}":${bytes}}}`;
    const batch = [{ key: `job.${name}.${this.queue}.${kind ?? 'unknown'}`, event, text, raw }];
    if (FINAL.includes(name)) {
      job.callback = this.#callbackOf(job, event);
      if (job.callback) batch.push(job.callback.submitted);
    }
    const properties = () => ({ type: 'hopline.events', contentType: 'application/cloudevents-batch+json', messageId: randomUUID() });
    for (const { key, event: public_, raw: hidden } of batch) { // for subscribers: nobody waits for it
      const omitted = Object.fromEntries(Object.keys(hidden).map((member) => [`${member}_omitted`, true]));
      const body = JSON.stringify([{ ...public_, data: { ...public_.data, ...omitted } }]);
      if (!this.lost) this.loose.publish(`${this.prefix}.events`, key, Buffer.from(body), properties());
    }
    await this.publisher.publish([`${this.prefix}.record`, ''], Buffer.from(`[${batch.map((one) => one.text)}]`), properties());
    return event;
  }

  /** The job that tells a URL of this end, and its `submitted` event. */
  #callbackOf(job, event) {
    const url = job.raw['hopline-callback-url'];
    if (typeof url !== 'string' || url === '') return undefined;
    const { worker, by, args_omitted, output_omitted, ...data } = event.data;
    const [queue, kind, now] = ['hopline-callbacks', 'hopline.callback', Date.now()];
    const id = derive(CALLBACK, job.id, String(job.run), event.type.split('.').pop());
    const tag = `callback:${job.id}`;
    const { traceparent, tracestate } = job.raw;
    const headers = { 'hopline-version': 1, 'hopline-created-at': now, 'hopline-tags': tag, traceparent, tracestate };
    const submitted = {
      specversion: '1.0', id: `${id}:1:0:submitted`, source: this.name, type: 'hopline.job.submitted', subject: id, time: rfc3339(now),
      data: { kind, queue, run: 1, attempt: 1, step: 0, created_at: rfc3339(now), tags: [tag], args_omitted: true },
    };
    return {
      headers, id, body: Buffer.from(JSON.stringify({ url, event: { ...event, source: 'hopline', data } })),
      submitted: { key: `job.submitted.${queue}.${kind}`, event: submitted, text: JSON.stringify(submitted), raw: {} },
    };
  }

  /** After the event of the end (and a dead job's copy) is confirmed, before the ack. */
  async #callback(job, unsure = undefined) {
    if (!job.callback) return;
    const { headers, id, body } = job.callback;
    const publish = () => this.publisher.publish(route('hopline-callbacks', 'hopline.callback', 0, this.prefix), body, {
      type: 'hopline.callback', messageId: id, appId: 'hopline-callback', headers: headersOf({ ...headers, 'hopline-unsure': unsure }),
    });
    try {
      await publish();
    } catch (error) {
      if (!error.unroutable) throw error;
      await declare(this.channel, this.prefix, 'hopline-callbacks'); // like any work queue
      await publish();
    }
  }

  /** Not awaited, and only where a caller may wait: the default exchange reaches every queue. */
  #reply(job, status, body, { data }) {
    const to = job.properties.replyTo ?? '';
    const ours = to.startsWith(`${this.prefix}.replies.`);
    if ((!ours && !(this.directReplies && to.startsWith('amq.rabbitmq.reply-to'))) || this.lost) return;
    const at = (text) => text && Date.parse(text);
    this.loose.publish(ours ? `${this.prefix}.replies` : '', to, Buffer.from(body ?? 'null'), {
      type: 'hopline.reply', messageId: job.id, correlationId: job.properties.correlationId, contentType: 'application/json',
      headers: headersOf({
        'hopline-status': status, 'hopline-job-id': job.id, 'hopline-run': job.run, 'hopline-attempt': data.attempt,
        'hopline-worker': data.worker, 'hopline-started-at': at(data.started_at), 'hopline-finished-at': at(data.finished_at),
        'hopline-reason': status === 'dead' ? data.reason : undefined, 'hopline-output-omitted': body === null ? true : undefined,
      }),
    });
  }

  // Lookups: has this run ended already?

  async #hasEnded(job) {
    const known = await this.#lookUp(job);
    if (known.latest_run > job.run) return true; // left over
    if (known.final && known.final.reason !== 'lost') {
      console.error(`job ${job.id} has ended already: ${known.final.status}`);
      await this.#endAgain(job, known.final);
      return true;
    }
    if (known.step > job.step) return true;
    if (known.cancel) job.order = { by: known.cancel.by, reason: known.cancel.reason };
    return false;
  }

  async #lookUp(job) {
    const deadline = Date.now() + this.lookupPatience;
    let answered = false;
    while (this.fronts && !this.silent && Date.now() < deadline) {
      if (this.stopping) throw new Error('stopped while it was asked about');
      const jobs = await this.#ask([{ id: job.id, run: job.run, step: job.step }]);
      answered ||= Boolean(jobs);
      const known = jobs?.find(({ id }) => id === job.id);
      if (known) return known;
      if (jobs) await sleep(3000); // left out: another process may know
    }
    if (this.fronts && !answered && !this.silent) {
      this.silent = true; // others are not held, until somebody answers again
      this.probe = setInterval(() => this.#ask([]), 5000);
      this.probe.unref();
    }
    return {};
  }

  async #ask(jobs) {
    const correlationId = randomUUID();
    const answer = new Promise((resolve) => this.questions.set(correlationId, resolve));
    this.loose.publish(`${this.prefix}.replies`, `${this.prefix}.lookup`, Buffer.from(JSON.stringify({ jobs })), {
      type: 'hopline.lookup', replyTo: this.replyTo, correlationId, messageId: randomUUID(), contentType: 'application/json',
    });
    const first = await Promise.race([answer, sleep(3000)]);
    this.questions.delete(correlationId);
    return first;
  }

  /** Does once more what may be missing after the event of an end: dead letter, callback, reply. */
  async #endAgain(job, final) {
    const { status, started_at, finished_at, reason } = final;
    const error = final.error ?? { code: status, message: reason ?? '' };
    const data = {
      kind: job.kind, queue: this.queue, run: job.run, attempt: Math.max(1, final.attempt ?? 1), step: job.step,
      worker: final.worker ?? this.name, started_at, finished_at, reason, error: final.error,
    };
    const event = {
      specversion: '1.0', id: `${job.id}:${job.run}:${job.step}:${status}`, source: this.name, type: `hopline.job.${status}`,
      subject: job.id, time: finished_at ?? rfc3339(Date.now()), data,
    };
    job.callback = this.#callbackOf(job, event);
    if (status === 'dead') await this.#deadLetter(job, reason ?? 'exhausted', error, data.attempt, data.worker, { unsure: true });
    await this.#callback(job, true);
    const output = 'output' in final ? JSON.stringify(final.output) : null;
    this.#reply(job, status, status === 'succeeded' ? output : JSON.stringify(error), event);
  }

  // What a worker says of itself.

  #announce() {
    this.mark = randomUUID(); // when this comes back, everything before it has been read
    const kinds = Object.entries(this.handlers).map(([kind, how]) => ({
      kind, queue: this.queue, timeout_ms: how.timeout, max_attempts: how.maxAttempts,
      retry: { initial_ms: how.initial, factor: how.factor, max_ms: how.longest, jitter: how.jitter },
    }));
    return this.publisher.publish([`${this.prefix}.control`, `kinds.${this.name}`], Buffer.from(JSON.stringify({ worker: this.name, kinds })), {
      type: 'hopline.kinds', messageId: this.mark, timestamp: Math.floor(Date.now() / 1000),
    });
  }

  #heartbeat(ended = undefined) {
    if (this.lost) return;
    const { size } = this.running;
    const body = {
      worker: this.name, version: 'node-example', host: os.hostname(), pid: process.pid, since: rfc3339(this.since),
      queues: [{ queue: this.queue, concurrency: this.concurrency, prefetch: this.concurrency, running: size, waiting: 0, paused: this.paused }],
      kinds: Object.keys(this.handlers).map((kind) => ({ kind, queue: this.queue })),
      jobs: [...this.running].map(({ id }) => id).filter(Boolean).slice(0, 100), ended,
    };
    this.loose.publish(`${this.prefix}.events`, `worker.heartbeat.${this.name}`, Buffer.from(JSON.stringify(body)), {
      type: 'hopline.worker.heartbeat', contentType: 'application/json',
    });
  }
}
