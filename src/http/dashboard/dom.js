// Builds elements. Data becomes text nodes and attribute values, is never read as HTML, and hides nothing.

const SVG = 'http://www.w3.org/2000/svg';

/** Characters that show nothing, or turn others around; not line breaks, tabs, and what makes a sign a picture. */
const UNSEEN = /(?!\r?\n|\t|(?<=\p{Extended_Pictographic})\ufe0f)[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\ufff9-\ufffb]/gu;

/** A text with what cannot be seen in it as in JSON: `\u202e`. */
export function visible(text) {
  return text.replace(UNSEEN, (sign) => sign.replace(/[^]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`));
}

const shown = (children) =>
  children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (typeof child === 'string' ? visible(child) : child));

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'css') {
      // By the object model: the policy allows no style attribute.
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else if (name === 'data') {
      Object.assign(element.dataset, value);
    } else if (name === 'value' || name === 'checked' || name === 'selected' || name === 'indeterminate') {
      element[name] = value;
    } else {
      const text = value === true ? '' : String(value);
      element.setAttribute(name, name === 'title' || name === 'aria-label' ? visible(text) : text);
    }
  }
  element.append(...shown(children));
  return element;
}

/** An HTML element: `h('a', { href: '/jobs', class: 'x', on: { click } }, 'text', child, [children])`. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Replaces what is in `element`. */
export function put(element, ...children) {
  element.replaceChildren(...shown(children));
  return element;
}

/** Replaces what is in `element` if that looks otherwise: focus and selection stay where nothing has changed. */
export function update(element, ...children) {
  morph(element, put(document.createDocumentFragment(), ...children));
  return element;
}

/** Makes the children of `old` those of `next`, keeping what is the same. Listeners of kept elements stay the old ones. */
function morph(old, next) {
  const [before, after] = [[...old.childNodes], [...next.childNodes]];
  after.forEach((child, index) => {
    const known = before[index];
    if (!known) old.append(child);
    else if (known.nodeType === 3 && child.nodeType === 3) {
      if (known.data !== child.data) known.data = child.data;
    } else if (known.nodeType !== 1 || child.nodeType !== 1 || known.tagName !== child.tagName || known.dataset.key !== child.dataset.key) {
      known.replaceWith(child);
    } else {
      const names = new Set([...known.getAttributeNames(), ...child.getAttributeNames()]);
      for (const name of names) {
        if (name === 'open') continue;
        const value = child.getAttribute(name);
        if (value === null) known.removeAttribute(name);
        else if (known.getAttribute(name) !== value) setAttribute(known, child, name, value);
      }
      morph(known, child);
    }
  });
  before.slice(after.length).forEach((child) => child.remove());
}

function setAttribute(known, child, name, value) {
  // A style attribute cannot be set as text under the policy.
  if (name !== 'style') known.setAttribute(name, value);
  else for (const property of child.style) known.style.setProperty(property, child.style.getPropertyValue(property));
}

/** A labelled control: the label's text, and the control with an id of its own. */
let ids = 0;
export function field(text, control, hint) {
  control.id ||= `c${(ids += 1)}`;
  const note = hint && h('span', { class: 'hint', id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute('aria-describedby', note.id);
  return h('div', { class: 'field' }, h('label', { for: control.id }, text), control, note);
}

/** A select of `[value, text]` pairs. */
export function select(options, chosen, on) {
  return h('select', { on }, options.map(([value, text]) => h('option', { value, selected: value === chosen }, text)));
}

export function button(text, click, properties = {}) {
  return h('button', { type: 'button', ...properties, on: { click } }, text);
}

/** Says something to screen readers. */
export function say(text) {
  document.getElementById('said').textContent = text;
}
