// The shell of all pages: which one an address names, navigation, session, theme, keys.

import { logIn, readSession, session } from './api.js';
import { complain } from './dialog.js';
import { button, h, put, say, visible } from './dom.js';
import { isId } from './format.js';
import { help, listen, setKeys } from './keys.js';
import { isLive, setLive } from './live.js';

/** Pages by their path; each module exports `page(context)`. */
const ROUTES = [
  [/^\/$/, () => import('./overview.js'), 'read'],
  [/^\/jobs\/?$/, () => import('./jobs.js'), 'read'],
  [/^\/jobs\/(?<id>[^/]+)$/, () => import('./job.js'), 'read'],
  [/^\/queues\/?$/, () => import('./queues.js'), 'read'],
  [/^\/dead\/?$/, () => import('./dead.js'), 'read'],
  [/^\/workers\/?$/, () => import('./workers.js'), 'read'],
  [/^\/kinds\/?$/, () => import('./kinds.js'), 'read'],
  [/^\/submit\/?$/, () => import('./submit.js'), 'submit'],
];

const main = document.getElementById('main');
/** What ends the page that is shown. */
let closing = [];
/** Counts pages, so that one that comes late is not shown. */
let turn = 0;

function routeOf(path) {
  for (const [pattern, load, scope] of ROUTES) {
    const found = pattern.exec(path);
    if (found) return { load, scope, parts: found.groups ?? {} };
  }
  return undefined;
}

/** Shows the page of an address; `replace`: instead of this one in the history. */
export function go(address, { replace = false } = {}) {
  const target = new URL(address, location.href);
  history[replace ? 'replaceState' : 'pushState'](null, '', target);
  return draw(true);
}

/** Changes the query of the address, without drawing the page again. */
function setQuery(query) {
  const text = new URLSearchParams(query).toString();
  history.replaceState(null, '', text ? `${location.pathname}?${text}` : location.pathname);
}

/** Shows the page of the address. `moved`: it was another before; `back`: by the browser's own history. */
async function draw(moved, back = false) {
  const mine = (turn += 1);
  closing.forEach((close) => close());
  closing = [];
  setKeys({});
  markCurrent();
  const route = routeOf(location.pathname);
  const context = {
    parts: route?.parts ?? {},
    query: new URLSearchParams(location.search),
    back,
    go,
    setQuery,
    setKeys,
    /** Called when another page is shown. */
    onclose: (close) => (mine === turn ? closing.push(close) : close()),
  };
  let shown;
  try {
    if (!route) shown = { title: 'No such page', content: h('p', {}, 'There is nothing at this address. ', h('a', { href: '/' }, 'Overview')) };
    else if (!session.can(route.scope)) shown = forbidden(route.scope);
    else shown = await (await route.load()).page(context);
  } catch (error) {
    shown = { title: 'This page cannot be shown', content: [h('p', { role: 'alert' }, error.text ?? String(error)), button('Try again', () => draw(true))] };
  }
  if (mine !== turn) return;
  const heading = h('h1', { tabindex: '-1' }, shown.heading ?? shown.title);
  put(main, h('div', { class: 'head' }, heading, shown.tools && h('div', { class: 'actions' }, shown.tools)), shown.content);
  shown.drawn?.();
  document.title = visible(`${shown.title} · Hopline`);
  if (moved) {
    scrollTo(0, shown.scroll ?? 0);
    heading.focus({ preventScroll: true });
    say(shown.title);
  }
}

function forbidden(scope) {
  if (session.keys && !session.name) {
    return { title: 'Not logged in', content: [h('p', {}, 'This server asks for an API key.'), button('Log in', logIn, { class: 'primary' })] };
  }
  return { title: 'Not for this key', content: h('p', {}, `The key ${session.name} does not have the scope `, h('code', {}, scope), ', which this page needs.') };
}

function markCurrent() {
  for (const link of document.querySelectorAll('header nav a')) {
    const path = link.getAttribute('href');
    const isHere = path === '/' ? location.pathname === '/' : location.pathname.startsWith(path);
    if (isHere) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
    link.closest('li').hidden = Boolean(link.dataset.scope) && !session.can(link.dataset.scope);
  }
}

function drawWho() {
  const who = document.getElementById('who');
  if (!session.name) return put(who);
  const scopes = session.can('operate') ? '' : ' (read-only)';
  return put(
    who,
    h('span', { title: `${session.scopes.join(', ')}${session.queues ? `; queues ${session.queues.join(', ')}` : ''}` }, `${session.name}${scopes}`),
    h('form', { method: 'post', action: '/logout' }, h('button', {}, 'Log out')),
  );
}

function toggleTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = isDark ? 'light' : 'dark';
  try {
    localStorage.setItem('theme', root.dataset.theme);
  } catch {
    // Forgotten with the page.
  }
  say(`${root.dataset.theme} theme`);
}

function toggleLive() {
  setLive(!isLive());
  drawLive();
  say(isLive() ? 'Pages keep themselves up to date' : 'Pages stay as they are');
}

function drawLive() {
  document.getElementById('live-toggle').setAttribute('aria-pressed', String(isLive()));
}

const EVERYWHERE = {
  '?': ['Show this', () => help(EVERYWHERE)],
  '/': ['Find', () => document.getElementById('find-text').focus()],
  l: ['Live on and off', toggleLive],
  t: ['Dark and light', toggleTheme],
};

document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a[href]');
  if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.defaultPrevented) return;
  if (link.target || link.hasAttribute('download') || link.origin !== location.origin || !routeOf(link.pathname) || link.hash) return;
  event.preventDefault();
  go(link.href);
});
history.scrollRestoration = 'manual';
addEventListener('popstate', () => draw(true, true));
document.getElementById('find').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = document.getElementById('find-text').value.trim();
  if (text) go(isId(text) ? `/jobs/${text.toLowerCase()}` : `/jobs?${new URLSearchParams({ q: text })}`);
});
document.getElementById('theme-toggle').addEventListener('click', toggleTheme);
document.getElementById('live-toggle').addEventListener('click', toggleLive);
document.getElementById('help').addEventListener('click', () => help(EVERYWHERE));
listen(EVERYWHERE, go);
drawLive();

try {
  await readSession();
  drawWho();
  document.getElementById('version').textContent = `version ${session.version}`;
} catch (error) {
  complain(error);
}
if (session.keys && !session.name) logIn();
else await draw(false);
