// Fills a Hopline with jobs and looks at every page of its dashboard: light and dark, wide and narrow. It fails on any error of
// the console, any request that leaves the origin, any page wider than its window, and any serious finding of axe; then it does by
// mouse and keyboard what the pages are for. Run by `scripts/dashboard`.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { launch } from './browser.mjs';

const { OPEN, LOCKED, IMAGES, READ_KEY, SUBMIT_KEY } = process.env;
const RECORDS = Number(process.env.RECORDS);
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const BATCH = 5000;
/** Longest wait for anything, in ms: the machine may be busy. */
const PATIENCE = 60_000;
/** How long something has happened before a picture is taken, in ms. */
const PICTURES = 240_000;
const problems = [];

function check(holds, text) {
  if (!holds) problems.push(text);
  if (!holds) console.error(`WRONG: ${text}`);
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, ask, patience = PATIENCE) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await ask().catch(() => undefined);
    if (found) return found;
    if (Date.now() > end) throw new Error(`it is not so after ${patience / 1000} s: ${what}`);
    await sleep(100);
  }
}

async function ask(path, body, headers = {}) {
  const answer = await fetch(OPEN + path, body === undefined ? { headers } : { method: 'POST', body, headers: { 'content-type': 'application/json', ...headers } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** A number that is the same in each run. */
let state = 1;
const chance = (below) => (state = (state * 48_271) % 2_147_483_647) % below;

/** A job that does nothing, or fails, or waits: what a list is to show. */
function job(number) {
  const tags = [`customer-${chance(40)}`, ['nightly', 'import', 'eu-west'][chance(3)]].slice(0, chance(3));
  const dice = chance(1000);
  const messages = [`no answer from 10.0.0.${chance(250)}`, 'card declined: insufficient funds', `picture ${number} is missing`, 'SMTP 550: mailbox unavailable'];
  const rest = { queue: 'demo', tags };
  if (dice < 15) return { ...rest, kind: 'demo.echo', args: { order: number }, delay: `${600 + chance(80_000)}s` };
  if (dice < 45) return { ...rest, kind: 'demo.fail', args: { fatal: true, message: messages[chance(4)] } };
  if (dice < 65) return { ...rest, kind: 'demo.flaky', args: { failures: 1 + chance(2) } };
  return { ...rest, kind: 'demo.echo', args: { order: 1000 + number, items: [{ sku: `A-${chance(90)}`, count: 1 + chance(5) }], note: 'as it came' } };
}

/** A text that would be an element if anybody read it as HTML. */
const HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>';

async function fill() {
  await until('fronts are ready', async () => (await fetch(`${OPEN}/readyz`)).ok && (await fetch(`${LOCKED}/readyz`)).ok);
  await until('the worker is there', async () => (await ask('/v1/kinds')).items.some((kind) => kind.kind === 'demo.flaky'));
  for (let done = 0; done < RECORDS; done += BATCH) {
    const lines = Array.from({ length: Math.min(BATCH, RECORDS - done) }, (_, index) => JSON.stringify(job(done + index))).join('\n');
    const answer = await ask('/v1/jobs/batch', lines, { 'content-type': 'application/x-ndjson' });
    check(answer.rejected === 0, `${answer.rejected} of a batch are rejected`);
  }
  // Nobody takes from this one.
  await ask('/v1/jobs/batch', JSON.stringify(Array.from({ length: 40 }, () => ({ kind: 'image.thumbnail', queue: 'media', args: { image: { path: 'a.jpg' } } }))));
  const start = Date.now();
  await until('what can run has run', async () => {
    const { counts } = await ask('/v1/jobs/counts?queue=demo');
    return counts.queued + counts.running + counts.retrying === 0;
  }, PATIENCE + RECORDS * 30);
  console.log(`${RECORDS} jobs are in the record; the last of them ended ${Math.round((Date.now() - start) / 1000)} s after they were submitted`);
  const one = async (body, headers) => (await ask('/v1/jobs', JSON.stringify(body), headers)).id;
  const ids = {
    dead: await one({ kind: 'demo.fail', args: { message: 'no answer from 10.0.0.7: connection timed out' }, tags: ['customer-17', 'nightly'] }, { traceparent: `00-${TRACE}-00f067aa0ba902b7-01` }),
    hostile: await one({ kind: 'demo.fail', args: { fatal: true, message: HOSTILE, [HOSTILE]: HOSTILE }, tags: ['<b>tag'] }),
    flaky: await one({ kind: 'demo.flaky', args: { failures: 2 } }),
    exact: null,
  };
  const exact = await ask('/v1/jobs', '{"kind":"demo.echo","args":{"amount":12345678901234567890.10}}');
  ids.exact = exact.id;
  for (const id of Object.values(ids)) await ask(`/v1/jobs/${id}?wait=20s`);
  return ids;
}

/** A page that tells what is wrong with it. */
async function open(browser, origin, { width = 1280, dark = false, height = 860 } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: dark ? 'dark' : 'light', reducedMotion: 'reduce' });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const name = () => `${page.url().replace(origin, '')} (${width} px, ${dark ? 'dark' : 'light'})`;
  page.expected = [];
  page.on('console', (message) => {
    const text = `${message.text()} ${message.location().url ?? ''}`;
    const known = page.expected.some((part) => text.includes(part));
    if (['error', 'warning'].includes(message.type()) && !known) check(false, `${name()}: console: ${text}`);
  });
  page.on('pageerror', (error) => check(false, `${name()}: ${error.stack ?? error.message}`));
  page.on('request', (request) => {
    const { protocol, origin: asked } = new URL(request.url());
    check(asked === origin || protocol === 'data:', `${name()}: asks ${request.url()}`);
  });
  page.on('dialog', (dialog) => {
    check(false, `${name()}: a script ran: ${dialog.message()}`);
    return dialog.dismiss();
  });
  await context.addInitScript({ content: AXE });
  return page;
}

/** What axe finds that is serious or worse. */
async function axe(page, name) {
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  for (const { id, impact, help, nodes } of violations) {
    if (['serious', 'critical'].includes(impact)) check(false, `${name}: axe ${id} (${impact}): ${help}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} ${node.any[0]?.message ?? ''}`).join(' | ')}`);
  }
  return violations.length;
}

async function look(browser, ids) {
  const pages = [
    ['overview', '/', '.tile'],
    ['jobs', '/jobs', '.body .row'],
    ['jobs-failed', '/jobs?status=failed&queue=demo&since=1d', '.body .row'],
    ['jobs-range', '/jobs?from=2026-01-01T00:00:00Z&to=2099-01-01T00:00:00Z', '.range input'],
    ['jobs-since-what', '/jobs?since=toString', '.body .row'],
    ['jobs-none', '/jobs?kind=no.such', '.empty:not([hidden])'],
    ['job', `/jobs/${ids.dead}`, '.timeline li'],
    ['job-hostile', `/jobs/${ids.hostile}`, '.timeline li'],
    ['job-done', `/jobs/${ids.flaky}`, '.timeline li'],
    ['queues', '/queues', 'tbody tr'],
    ['dead', '/dead', '.group'],
    ['workers', '/workers', '.worker'],
    ['kinds', '/kinds', 'article'],
    ['submit', '/submit?kind=demo.fail', '.args select'],
    ['submit-json', '/submit?kind=no.such', '.args textarea'],
    ['none', '/jobs/0198c0de-7a3c-7c3e-8d5f-000000000000', 'main p[role=alert]'],
  ];
  let minor = 0;
  for (const width of [1280, 360]) {
    for (const dark of [false, true]) {
      const page = await open(browser, OPEN, { width, dark });
      page.expected.push('/v1/jobs/0198c0de-7a3c-7c3e-8d5f-000000000000');
      for (const [name, path, there] of pages) {
        await page.goto(OPEN + path);
        await page.locator(there).first().waitFor();
        await sleep(300);
        const [wide, title, ground] = await page.evaluate(() => [document.documentElement.scrollWidth - document.documentElement.clientWidth, document.title, getComputedStyle(document.body).backgroundColor]);
        check(wide <= 0, `${name} at ${width} px is ${wide} px too wide`);
        check(title.endsWith('· Hopline') && !title.startsWith('1'), `${name}: title ${title}`);
        check((Number(ground.match(/\d+/)[0]) < 60) === dark, `${name}: ${ground} is not ${dark ? 'dark' : 'light'}`);
        minor += await axe(page, `${name} at ${width} px, ${dark ? 'dark' : 'light'}`);
      }
      await page.context().close();
    }
  }
  console.log(`${pages.length} pages, light and dark, at 1280 and 360 px; axe has ${minor} findings in all that are not serious`);
}

/** The list of all jobs from its beginning to its end. */
async function scroll(browser) {
  const page = await open(browser, OPEN);
  await page.goto(`${OPEN}/jobs`);
  await page.locator('.body .row').first().waitFor();
  const { total } = await ask('/v1/jobs/counts');
  const result = await page.evaluate(async (patience) => {
    let longest = 0;
    let rows = 0;
    let frames = 0;
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => (longest = Math.max(longest, entry.duration)))).observe({ type: 'longtask' });
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const start = performance.now();
    while (performance.now() - start < patience) {
      scrollBy(0, 6000);
      await frame();
      frames += 1;
      rows = Math.max(rows, document.querySelectorAll('.body .row').length);
      if (!document.querySelector('.total').textContent.includes('more below') && scrollY + innerHeight >= document.documentElement.scrollHeight - 2) break;
    }
    return { longest, rows, frames, took: performance.now() - start, total: document.querySelector('.total').textContent };
  }, PATIENCE * 4);
  const listed = Number(result.total.replace(/\D/g, ''));
  check(listed >= total, `${listed} jobs are listed, of ${total}`);
  check(result.rows < 120, `${result.rows} rows are in the document`);
  console.log(`${listed} jobs scrolled through in ${(result.took / 1000).toFixed(1)} s, ${Math.round((result.frames / result.took) * 1000)} frames a second, at most ${result.rows} rows in the document, longest task ${Math.round(result.longest)} ms`);
  const back = await page.evaluate(async () => {
    const start = performance.now();
    scrollTo(0, 0);
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    return performance.now() - start;
  });
  console.log(`back to the beginning in ${Math.round(back)} ms`);
  await page.context().close();
}

/** Mends a dead job: found in the list, its args edited, replayed, seen to succeed. */
async function mend(browser) {
  const broken = await ask('/v1/jobs', JSON.stringify({ kind: 'demo.flaky', args: { failures: 1 }, max_attempts: 1, tags: ['to-mend'] }));
  await ask(`/v1/jobs/${broken.id}?wait=20s`);
  const page = await open(browser, OPEN);
  await page.goto(`${OPEN}/jobs?status=failed&tag=to-mend`);
  await page.locator('.body .row a').first().click();
  await page.getByRole('button', { name: 'Edit args and replay' }).click();
  await page.getByRole('dialog').getByLabel('Args', { exact: true }).fill('{"failures": ');
  await page.getByRole('dialog').getByRole('button', { name: 'Replay', exact: true }).click();
  await page.getByRole('alert').filter({ hasText: 'no JSON' }).waitFor();
  await page.getByRole('dialog').getByLabel('Args', { exact: true }).fill('{"failures": 0}');
  await page.getByRole('dialog').getByRole('button', { name: 'Replay', exact: true }).click();
  await page.locator('.standing', { hasText: 'succeeded' }).waitFor();
  const { run, args } = await ask(`/v1/jobs/${broken.id}`);
  check(run === 2 && args.failures === 0, `a mended job is in run ${run} with ${JSON.stringify(args)}`);
  await page.context().close();
}

/** Submits by a form, with what is wrong told, and by JSON. */
async function submit(browser, ids) {
  const page = await open(browser, OPEN);
  page.expected.push('/v1/jobs');
  await page.goto(`${OPEN}/submit?kind=demo.sleep`);
  await page.getByRole('button', { name: 'Submit', exact: true }).click();
  await page.getByText('ms is required').waitFor();
  await page.getByLabel('ms').fill('1500');
  await page.getByRole('button', { name: 'JSON' }).click();
  check((await page.getByLabel('Args as JSON').inputValue()).includes('1500'), 'what was written goes over to JSON');
  await page.getByLabel('Args as JSON').fill('{"ms": "soon"}');
  await page.getByRole('button', { name: 'Submit', exact: true }).click();
  await page.locator('.wrong li', { hasText: '/args/ms' }).waitFor();
  await page.getByLabel('Args as JSON').fill('{"ms": 1500}');
  await page.getByRole('button', { name: 'Submit', exact: true }).click();
  await page.waitForURL('**/jobs/*');
  await page.locator('.standing', { hasText: 'succeeded' }).waitFor();
  await page.goto(`${OPEN}/submit?like=${ids.exact}`);
  await page.getByLabel('Args as JSON').waitFor();
  check((await page.getByLabel('Args as JSON').inputValue()).includes('12345678901234567890.10'), 'numbers keep their digits');
  await page.context().close();
}

/** A kind whose schema is this one. */
const kindOf = (kind, args, more) => ({ kind, queue: 'demo', workers: ['one'], schemas: [{ announced_by: ['one'], args }], ...more });

/** Args that a form or an editor begins with are sent as they came, if nobody touches them; what no form can show is text. */
async function untouched(browser) {
  const page = await open(browser, OPEN);
  const texts = { type: 'object', required: ['s'], properties: { s: { type: 'string' }, o: { type: 'string' }, l: { type: 'array', items: { type: 'string' } }, n: { type: ['number', 'null'] }, in: { type: 'object', properties: { x: { enum: ['a', 'b'] } } }, toString: { type: 'string' } } };
  const node = { type: 'object', properties: Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`p${index}`, { $ref: '#/$defs/node' }])) };
  const kinds = [kindOf('demo.texts', texts), kindOf('demo.one', { type: 'object', properties: { a: { oneOf: 5 } } }), kindOf('demo.two', { $ref: '#/%zz' }), kindOf('demo.three', { $ref: '#/$defs/node', $defs: { node } })];
  await page.route('**/v1/kinds', (route) => route.fulfill({ json: { items: kinds } }));
  const like = async (args, mode) => {
    const before = await ask('/v1/jobs', `{"kind":"demo.texts","queue":"mail","args":${args}}`);
    await until('it is in the record', () => ask(`/v1/jobs/${before.id}`));
    await page.goto(`${OPEN}/submit?like=${before.id}`);
    await page.locator('.args textarea').first().waitFor();
    check((await page.locator('.args [aria-pressed=true]').textContent()) === mode, `${args} is written as ${mode}`);
    check(mode === 'Form' || (await page.locator('.args .hint').textContent()).startsWith('No form can show'), `${args}: it is said why there is no form`);
    const sent = page.waitForRequest((request) => request.method() === 'POST');
    await page.getByRole('button', { name: 'Submit', exact: true }).click();
    const body = (await sent).postData();
    const plain = body.slice(body.indexOf('"args":') + 7, -1).replaceAll(/\n\s*/g, '').replaceAll('": ', '":');
    check(plain === args, `${args} became ${plain}`);
    await page.waitForURL('**/jobs/*');
  };
  for (const args of ['{"s":"line1\\nline2"}', '{"s":"","o":"","l":[],"in":{}}', '{"n":1.10,"9":1E5,"2":-0,"1":12345678901234567890,"s":"x"}', '{"n":null,"s":"x","in":{"x":"b"}}']) await like(args, 'Form');
  for (const args of ['{"s":5}', '{}', '{"s":"a\\r\\nb"}', '{"s":"to\\u202ex"}', '{"s":"x","in":{"x":"c"}}', '{"s":"x","s":"y"}']) await like(args, 'JSON');
  await page.goto(`${OPEN}/submit?kind=demo.texts`);
  await page.getByLabel('toString').waitFor();
  check((await page.getByLabel('toString').inputValue()) === '', 'a member that nobody gave is empty');
  for (const { kind } of kinds.slice(1)) {
    await page.getByLabel('Kind').fill(kind);
    await page.getByText('No form can show these args').waitFor();
    check((await page.getByLabel('Args as JSON').inputValue()) === '{}', `${kind}: args are JSON`);
    await page.getByLabel('Kind').fill('demo.texts');
    await page.getByLabel('toString').waitFor();
  }
  const digits = '{"9":1.0,"2":1.10,"1":[1E5,-0,1e-400,1e400],"d":1,"d":2}';
  const { id } = await ask('/v1/jobs', `{"kind":"demo.fail","args":{"fatal":true,"message":"digits","more":${digits}}}`);
  await ask(`/v1/jobs/${id}?wait=20s`);
  await page.goto(`${OPEN}/jobs/${id}`);
  await page.getByRole('button', { name: 'Edit args and replay' }).click();
  const written = await page.getByRole('dialog').getByLabel('Args', { exact: true }).inputValue();
  check(written.replaceAll(/\s/g, '').includes(digits), `an editor begins with ${written}`);
  await page.context().close();
}

/** What is deep, wide or long neither breaks a page nor stops it. */
async function large(browser, ids) {
  const deep = 30_000;
  const jobs = { deep: `${'['.repeat(deep)}${']'.repeat(deep)}`, wide: `[${Array(90).fill(`[${Array(100).fill('[0,0]')}]`)}]` };
  const page = await open(browser, OPEN);
  // The interface takes nothing as deep, a queue does.
  const job = { ...(await ask(`/v1/jobs/${ids.dead}`)), args: undefined };
  let args;
  await page.route(`**/v1/jobs/${job.id}`, (route) => route.fulfill({ body: `${JSON.stringify(job).slice(0, -1)},"args":${args}}` }));
  for (const name of Object.keys(jobs)) {
    args = jobs[name];
    await page.goto(`${OPEN}/jobs/${job.id}`);
    await page.locator('.json summary').first().waitFor();
    const made = await page.locator('.json *').count();
    check(made < 5000, `${name} args are ${made} elements`);
  }
  await page.route('**/v1/jobs/cut', (route) => route.fulfill({ body: '{"id":' }));
  await page.goto(`${OPEN}/jobs/cut`);
  await page.getByText('The answer cannot be read').waitFor();
  const long = 'w'.repeat(3000);
  await page.route('**/v1/workers', (route) => route.fulfill({ json: { items: [{ worker: long, host: long, version: '1', pid: 1, since: '2026-01-01T00:00:00Z', queues: [], kinds: [], jobs: [] }] } }));
  const schema = { type: 'object', title: long, properties: { [long]: { type: 'object', description: long, properties: { x: { type: 'string', title: long } } } } };
  await page.route('**/v1/kinds', (route) => route.fulfill({ json: { items: [kindOf('demo.long', schema, { workers: [long], deprecated: long })] } }));
  for (const width of [1280, 360]) {
    await page.setViewportSize({ width, height: 860 });
    for (const [path, there] of [['/workers', '.worker'], ['/kinds', 'article'], ['/submit?kind=demo.long', '.args textarea']]) {
      await page.goto(OPEN + path);
      await page.locator(there).first().waitFor();
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      check(wide <= 0, `${path} with long names at ${width} px is ${wide} px too wide`);
    }
  }
  await page.context().close();
}

/** Acts on many: cancels by filter, pauses, purges, replays a group, each with its confirmation. */
async function act(browser) {
  await ask('/v1/jobs/batch', JSON.stringify(Array.from({ length: 12 }, () => ({ kind: 'demo.echo', queue: 'demo', delay: '2h', tags: ['to-cancel'] }))));
  await until('they are in the record', async () => (await ask('/v1/jobs?tag=to-cancel')).items.length === 12);
  const page = await open(browser, OPEN);
  await page.goto(`${OPEN}/jobs?tag=to-cancel`);
  await page.locator('.body .row').first().waitFor();
  await page.getByRole('button', { name: 'Cancel all that fit' }).click();
  await page.locator('dialog .found', { hasText: '12 jobs' }).waitFor();
  await axe(page, 'the dialog of an act');
  await page.getByRole('button', { name: 'Cancel the jobs' }).click();
  await page.locator('.notice', { hasText: '12 done' }).waitFor();
  check((await ask('/v1/jobs?tag=to-cancel')).items.every((one) => one.cancel_requested_at), 'all twelve are asked to be cancelled');

  await page.goto(`${OPEN}/queues`);
  await page.getByRole('button', { name: 'Pause mail' }).click();
  await page.getByRole('button', { name: 'Resume mail' }).waitFor();
  check((await ask('/v1/queues/mail')).paused, 'mail is paused');
  await page.getByRole('button', { name: 'Resume mail' }).click();
  await page.getByRole('button', { name: 'Pause mail' }).waitFor();
  await page.getByRole('button', { name: 'Purge media' }).click();
  await page.locator('dialog .found', { hasText: '40 jobs' }).waitFor();
  const purge = page.getByRole('button', { name: 'Purge the queue' });
  check(await purge.isDisabled(), 'a purge waits for the name of the queue');
  await page.getByLabel('Type media to go on').fill('media');
  await purge.click();
  await page.locator('.notice', { hasText: '40 done' }).waitFor();

  await page.goto(`${OPEN}/dead?queue=demo`);
  const group = page.locator('.group', { hasText: 'card declined' });
  await group.getByRole('button', { name: 'Replay' }).click();
  await page.locator('dialog .found b').waitFor();
  const before = Number((await page.locator('dialog .found b').textContent()).replace(/\D/g, ''));
  await page.getByLabel('Jobs per second, at most').fill('500');
  await page.getByRole('dialog').getByLabel('Args', { exact: true }).selectOption('new');
  await page.getByLabel('New args').fill('{"fatal": true, "message": "still declined"}');
  await page.getByRole('button', { name: 'Replay the jobs' }).click();
  await page.locator('.notice', { hasText: `${before.toLocaleString('en')} done` }).waitFor({ timeout: PATIENCE * 5 });
  await page.locator('.group', { hasText: 'still declined' }).waitFor();
  await page.context().close();
}

/** By keyboard alone: from the overview to a job and back, with the focus where it belongs. */
async function keys(browser) {
  const page = await open(browser, OPEN);
  await page.goto(OPEN);
  await page.locator('.tile').first().waitFor();
  await page.keyboard.press('Tab');
  check((await page.evaluate(() => document.activeElement.textContent)) === 'Skip to the page', 'the first stop skips to the page');
  await page.keyboard.press('g');
  await page.keyboard.press('j');
  await page.getByRole('heading', { name: 'Jobs', exact: true }).waitFor();
  check((await page.evaluate(() => document.activeElement.tagName)) === 'H1', 'the focus is on the heading of a new page');
  await page.locator('.body .row').first().waitFor();
  for (const key of ['j', 'j', 'x']) await page.keyboard.press(key);
  await page.getByText('1 chosen').waitFor();
  await page.keyboard.press('Enter');
  await page.waitForURL('**/jobs/*');
  await page.goBack();
  await page.locator('.body .row').first().waitFor();
  await page.keyboard.press('?');
  await page.getByRole('dialog').waitFor();
  await axe(page, 'the shortcuts');
  await page.keyboard.press('Escape');
  await page.keyboard.press('t');
  check((await page.evaluate(() => document.documentElement.dataset.theme)) === 'dark', 't changes the theme');
  await page.reload();
  check((await page.evaluate(() => document.documentElement.dataset.theme)) === 'dark', 'the theme is remembered');
  await page.keyboard.press('/');
  const { items } = await ask('/v1/jobs?limit=1');
  await page.keyboard.type(items[0].id);
  await page.keyboard.press('Enter');
  await page.waitForURL(`**/jobs/${items[0].id}`);
  await page.context().close();
}

/** A key that may only read, and one that may only submit. */
async function locked(browser, ids) {
  const page = await open(browser, LOCKED);
  page.expected.push('401', '403');
  await page.goto(`${LOCKED}/dead?queue=demo`);
  await page.waitForURL('**/login?next=*');
  check(await page.evaluate(() => getComputedStyle(document.querySelector('main')).borderRadius) === '10px', 'the login has its style');
  await axe(page, 'the login');
  await page.getByLabel('API key').fill(READ_KEY);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForURL(`${LOCKED}/dead?queue=demo`);
  await page.locator('.group').first().waitFor();
  await page.getByText('reader (read-only)').waitFor();
  for (const [path, there] of [['/dead', '.group'], ['/jobs', '.body .row'], [`/jobs/${ids.dead}`, '.timeline li'], ['/queues', 'tbody tr']]) {
    await page.goto(LOCKED + path);
    await page.locator(there).first().waitFor();
    const offered = await page.locator('main').getByRole('button', { name: /replay|purge|cancel|pause|resume/i }).count();
    check(offered === 0, `${path} offers ${offered} acts to who may only read`);
  }
  check((await page.getByRole('link', { name: 'Submit' }).count()) === 0, 'nothing is to be submitted by who may only read');
  await page.goto(`${LOCKED}/submit`);
  await page.getByText('does not have the scope').waitFor();
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.waitForURL('**/login');
  await page.getByLabel('API key').fill(SUBMIT_KEY);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.getByText('does not have the scope').waitFor();
  await page.getByRole('link', { name: 'Submit' }).click();
  await page.getByLabel('Kind').fill('demo.echo');
  await page.getByText('may not read which kinds there are').waitFor();
  await page.getByRole('button', { name: 'Submit', exact: true }).click();
  await page.getByText('Accepted: job ').waitFor();
  check(page.url() === `${LOCKED}/submit`, 'who may not read the job stays where it was submitted');
  await page.context().close();
}

/** What was told as it came is shown as it came. */
async function text(browser, ids) {
  const page = await open(browser, OPEN);
  await page.goto(`${OPEN}/jobs/${ids.hostile}`);
  await page.locator('.message', { hasText: HOSTILE }).waitFor();
  check((await page.locator('main img, main script').count()) === 0, 'no text became an element');
  const { id } = await ask('/v1/jobs', JSON.stringify({ kind: 'demo.echo', delay: '2h', tags: ['t\u202eag'], args: { 'from\u202eto': 12345, 'zw\u200b': 1, zw: 2 } }));
  await until('it is in the record', () => ask(`/v1/jobs/${id}`));
  await page.goto(`${OPEN}/jobs/${id}`);
  await page.locator('.json-key').first().waitFor();
  const shown = await page.locator('.json-key, .tag').allTextContents();
  check(['from\\u202eto', 'zw\\u200b', 'zw', 't\\u202eag'].every((name) => shown.includes(name)), `what cannot be seen is shown as ${shown}`);
  await page.goto(`${OPEN}/jobs/${ids.dead}`);
  const link = page.getByRole('link', { name: TRACE });
  check((await link.getAttribute('href')) === `https://traces.example/trace/${TRACE}`, 'the job links to its trace');
  check((await link.getAttribute('rel')).includes('noopener'), 'the trace is told nothing');
  await page.context().close();
}

async function pictures(browser, ids) {
  // Not in a picture for strangers.
  await fetch(`${OPEN}/v1/queues/demo/dead?id=${ids.hostile}`, { method: 'DELETE' });
  // Something is to happen while it is looked at.
  let going = true;
  const work = (async () => {
    for (let number = 0; going; number += 1) {
      const jobs = Array.from({ length: 8 + Math.round(16 * (1 + Math.sin(number / 25))) }, () => job(number));
      await ask('/v1/jobs/batch', JSON.stringify([...jobs, { kind: 'demo.sleep', queue: 'demo', args: { ms: 2000 + 500 * (number % 5) } }]));
      await sleep(500);
    }
  })();
  await sleep(PICTURES);
  const take = async (name, path, there, options) => {
    const page = await open(browser, OPEN, { height: 800, ...options });
    await page.goto(OPEN + path);
    await page.locator(there).first().waitFor();
    await sleep(2500);
    await page.screenshot({ path: `${IMAGES}/dashboard-${name}.png` });
    await page.context().close();
  };
  await take('overview', '/', '.tile');
  await take('jobs', '/jobs?status=scheduled,running,retrying,dead', '.body .row');
  await take('job', `/jobs/${ids.dead}`, '.timeline li');
  await take('dead', '/dead', '.group', { dark: true });
  going = false;
  await work;
}

const ids = await fill();
const browser = await launch();
try {
  await look(browser, ids);
  await scroll(browser);
  await text(browser, ids);
  await keys(browser);
  await mend(browser);
  await submit(browser, ids);
  if (IMAGES) await pictures(browser, ids);
  await locked(browser, ids);
  await act(browser);
  await untouched(browser);
  await large(browser, ids);
} catch (error) {
  problems.push(error.stack);
  console.error(error.stack);
}
await browser.close();
console.log(problems.length ? `${problems.length} things are wrong` : 'All is well.');
process.exit(problems.length ? 1 : 0);
