// A worker: `AMQP_URL=amqp://… node worker.js [QUEUE]`, until Ctrl-C or SIGTERM. From the queue `node` it takes node.upper,
// node.flaky and node.count. With the argument `demo` it takes the kinds of the demo worker in Rust, and shares its queue:
// all workers of a queue know all its kinds.

import { setTimeout as sleep } from 'node:timers/promises';
import { Fatal, Retry } from './hopline.js';
import { Worker } from './worker-lib.js';

function upper({ args }) {
  if (typeof args?.text !== 'string') throw new Fatal('bad_args', 'text is missing');
  return args.text.toUpperCase();
}

/** Fails as often as its args say. */
function flaky({ args, attempt }) {
  if (attempt <= args.failures) throw new Retry('flaky', `attempt ${attempt} fails on purpose`);
  return { attempts: attempt };
}

/** Takes its time, says how far it is, and ends when it is told to. */
async function count(job) {
  const { seconds } = job.args;
  for (let second = 0; second < seconds; second += 1) {
    job.progress((100 * second) / seconds, `${second} s`);
    await sleep(1000, undefined, { signal: job.signal });
  }
  return { counted: seconds };
}

async function rest({ args, attempt, signal }) {
  await sleep(args.ms, undefined, { signal });
  return { slept_ms: args.ms, attempt };
}

function fail({ args }) {
  const message = args.message ?? 'failing on purpose';
  throw args.fatal ? new Fatal('demo_fatal', message) : new Retry('demo_failed', message);
}

const quick = { initial: 200, longest: 5000 };
const KINDS = {
  node: { 'node.upper': { run: upper }, 'node.flaky': { run: flaky }, 'node.count': { run: count } },
  demo: {
    'demo.echo': { run: ({ args }) => args },
    'demo.sleep': { run: rest },
    'demo.flaky': { run: flaky, ...quick },
    'demo.fail': { run: fail, ...quick, maxAttempts: 3 },
    'demo.panic': { run: () => { throw new Error('failing on purpose'); }, ...quick, maxAttempts: 3 },
    'demo.abort': { run: () => process.abort() },
  },
};

const queue = process.argv[2] ?? 'node';
process.exit(await new Worker(process.env.AMQP_URL, queue, KINDS[queue]).run());
