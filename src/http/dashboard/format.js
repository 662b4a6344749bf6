// Numbers, times and states as people read them.

import { h } from './dom.js';

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

/** 12,345 */
export function count(number) {
  return whole.format(number ?? 0);
}

/** 12.3K from 10,000 on. */
export function brief(number) {
  return number >= 10_000 ? short.format(number) : whole.format(number ?? 0);
}

/** Per second: 0, 0.3, 12 */
export function rate(number) {
  if (!number) return '0';
  if (number < 0.1) return '<0.1';
  return number < 100 ? fine.format(number) : whole.format(number);
}

const UNITS = [
  [86_400, 'd'],
  [3600, 'h'],
  [60, 'min'],
];

/** Seconds as 250 ms, 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null || Number.isNaN(seconds)) return '–';
  if (seconds < 0.0005) return '0 ms';
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const steps = [...UNITS, [1, 's']];
  const at = steps.findIndex(([size]) => seconds >= size);
  const [size, name] = steps[at];
  const [rest, restName] = steps[at + 1];
  const more = Math.floor((seconds % size) / rest);
  return `${Math.floor(seconds / size)} ${name}${more ? ` ${more} ${restName}` : ''}`;
}

/** Seconds from one time to another, both RFC 3339. */
export function between(from, to) {
  return from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : undefined;
}

const pad = (number, digits = 2) => String(number).padStart(digits, '0');

/** 2030-01-31 12:00:00, in the browser's time zone. */
export function absolute(text, fraction = false) {
  const at = new Date(text);
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return `${day} ${clock}${fraction ? `.${pad(at.getMilliseconds(), 3)}` : ''}`;
}

/** "3 min ago", "in 2 h" */
export function relative(text, now = Date.now()) {
  const seconds = (now - Date.parse(text)) / 1000;
  const size = Math.abs(seconds);
  if (size < 1) return 'now';
  const unit = UNITS.find(([least]) => size >= least) ?? [1, 's'];
  const words = `${Math.floor(size / unit[0])} ${unit[1]}`;
  return seconds > 0 ? `${words} ago` : `in ${words}`;
}

/** A time that says how long ago it was, and keeps saying so. */
export function time(text) {
  if (!text) return h('span', { class: 'quiet' }, '–');
  return h('time', { datetime: text, title: absolute(text, true), data: { relative: '' } }, relative(text));
}

setInterval(() => {
  if (document.hidden) return;
  const now = Date.now();
  for (const element of document.querySelectorAll('time[data-relative]')) {
    const next = relative(element.dateTime, now);
    if (element.textContent !== next) element.textContent = next;
  }
}, 1000);

/** All states in the order of a job's life. */
export const STATUSES = ['scheduled', 'queued', 'running', 'retrying', 'succeeded', 'dead', 'cancelled', 'expired'];
export const FINAL = ['succeeded', 'dead', 'cancelled', 'expired'];

/** A state: a coloured mark and its name. */
export function status(name) {
  return h('span', { class: `status is-${name}` }, name);
}

/** The beginning of a long text, on one line. */
export function shorten(text, most = 160) {
  const line = text.replace(/\s+/g, ' ').trim();
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** Whether this can be a job's id. */
export function isId(text) {
  return /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(text.trim());
}

/** "1 job", "2 jobs" */
export function many(number, word) {
  return `${count(number)} ${word}${number === 1 ? '' : 's'}`;
}
