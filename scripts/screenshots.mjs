// Pictures of RabbitMQ's management UI. Run by `scripts/screenshots`. The page is as high as what is on it: its head does not scroll.

import { launch } from './browser.mjs';

const [address, queue, folder] = process.argv.slice(2);
const { username, password, origin } = new URL(address);
const browser = await launch();
const page = await browser.newPage({ viewport: { width: 1240, height: 2400 } });
page.on('dialog', (dialog) => dialog.accept());
await page.goto(origin);
await page.fill('input[name=username]', username);
await page.fill('input[name=password]', decodeURIComponent(password));
await page.click('input[type=submit]');
await page.waitForSelector('text=Queues and Streams');

/** The list of queues whose names match, with a page's worth of them. */
async function list(pattern, name) {
  await page.goto(`${origin}/#/queues`);
  await page.waitForSelector('#queues-name');
  await page.fill('#queues-name', pattern);
  if (!(await page.isChecked('#queues-filter-regex-mode'))) await page.check('#queues-filter-regex-mode');
  await page.press('#queues-name', 'Enter');
  await page.waitForTimeout(6000);
  await picture(name, '.updatable table.list');
}

/** From the top of the page to the end of the last of what is named. */
async function picture(name, to) {
  const box = await page.locator(to).last().boundingBox();
  const clip = { x: 0, y: 0, width: 1240, height: box.y + box.height + 10 };
  await page.screenshot({ path: `${folder}/rabbitmq-${name}.png`, clip });
}

async function queueOf(name) {
  await page.goto(`${origin}/#/queues/%2F/${encodeURIComponent(name)}`);
  await page.waitForSelector('h1:has-text("Queue")');
  await page.waitForTimeout(6000);
}

await list('^hopline\\.q\\.', 'queues');
await list('^hopline\\.(delay\\.(0[0-5]|1[5-9])|strays|log|control)', 'ladder');
await queueOf(`hopline.q.${queue}`);
await page.click('h2:has-text("Consumers")');
await page.waitForTimeout(1000);
await picture('queue', 'h2:has-text("Bindings")');
await queueOf(`hopline.q.${queue}.dead`);
await page.click('h2:has-text("Get messages")');
await page.waitForTimeout(500);
await page.locator('form[action="#/queues/get"] input[type=submit]').click();
await page.waitForSelector('text=Message 1', { timeout: 20_000 });
const box = await page.locator('h2:has-text("Get messages")').boundingBox();
const end = await page.locator('h2:has-text("Delete"), h2:has-text("Move messages")').first().boundingBox();
await page.screenshot({ path: `${folder}/rabbitmq-dead.png`, clip: { x: 0, y: box.y - 10, width: 1240, height: end.y - box.y } });
await browser.close();
