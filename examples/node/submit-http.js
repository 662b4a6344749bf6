// Submits a job over HTTP, with nothing installed: `node submit-http.js KIND ARGS`. HOPLINE_URL names the front.
// The id is made here, so the request can be repeated until there is an answer: there will be one job.

import { setTimeout as sleep } from 'node:timers/promises';

export async function submit(kind, args, { id = crypto.randomUUID(), tries = 5, ...members } = {}) {
  const base = process.env.HOPLINE_URL ?? 'http://127.0.0.1:8080';
  const headers = { 'content-type': 'application/json' };
  if (process.env.HOPLINE_API_KEY) headers.authorization = `Bearer ${process.env.HOPLINE_API_KEY}`;
  const body = JSON.stringify({ kind, args, ...members });
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await fetch(`${base}/v1/jobs/${id}`, { method: 'PUT', headers, body, signal: AbortSignal.timeout(10_000) });
      const told = await answer.json();
      if (answer.ok) return told;
      const final = answer.status < 500 && !['in_flight', 'rate_limited'].includes(told.code);
      throw Object.assign(new Error(`${told.code}: ${told.detail ?? ''}`), { final });
    } catch (error) {
      if (error.final || attempt === tries) throw error;
    }
    await sleep(2 ** attempt * 100);
  }
}

if (process.argv[1] === import.meta.filename) {
  const [kind, args] = process.argv.slice(2);
  console.log((await submit(kind, JSON.parse(args))).id);
}
