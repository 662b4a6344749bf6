// Shows /openapi.json. Everything is put in as text: a description never becomes markup.
"use strict";

function put(into, tag, text, more) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, more);
  into.append(made);
  return made;
}

// Text in which `this` is code, and lines that begin with "- " are a list.
function prose(into, text) {
  for (const block of String(text).split(/\n\n+/)) {
    const lines = block.split("\n");
    const list = lines.every((line) => line.startsWith("- "));
    const box = put(into, list ? "ul" : "p");
    for (const line of list ? lines : [lines.join(" ")]) spans(list ? put(box, "li") : box, list ? line.slice(2) : line);
  }
}

function spans(into, text) {
  String(text).split("`").forEach((piece, index) => {
    if (piece) put(into, index % 2 ? "code" : "span", piece);
  });
}

let whole;

// What a reference refers to; a reference that leads nowhere is shown as it is.
function seen(part) {
  let steps = 0;
  while (part && part.$ref && part.$ref.startsWith("#/") && steps++ < 20) {
    const { $ref, ...beside } = part;
    const words = $ref.slice(2).split("/").map((word) => word.replace(/~1/g, "/").replace(/~0/g, "~"));
    const found = words.reduce((at, word) => (at === undefined || at === null ? undefined : at[word]), whole);
    if (found === undefined || typeof found !== "object") break;
    part = { ...found, ...beside };
  }
  return part;
}

// Most alternatives that are told one by one.
const SHOWN = 12;

function typeOf(schema, depth = 0) {
  schema = seen(schema);
  if (depth > 8 || schema === true || !schema) return "anything";
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.length > 12 ? `one of ${schema.enum.length} texts` : schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const any = schema.anyOf || schema.oneOf;
  // Each level has all of the one below: a schema may be full of itself.
  if (any && !schema.type) {
    if (depth > 2 || any.length > SHOWN) return `one of ${any.length} schemas`;
    return [...new Set(any.map((one) => typeOf(one, depth + 1)))].join(" or ");
  }
  if (schema.type === "array") return "array of " + typeOf(schema.items, depth + 1);
  const bounds = ["format", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "default"];
  // A long pattern says less than the words beside it; the schema has it.
  const short = (name) => schema[name] !== undefined && String(schema[name]).length < 40;
  const said = bounds.filter(short).map((name) => `${name} ${schema[name]}`);
  return [[].concat(schema.type || "anything").join(" or "), ...said].join(", ");
}

function rows(into, heads, lines) {
  if (!lines.length) return;
  const table = put(put(into, "div", undefined, { className: "scroll" }), "table");
  const head = put(put(table, "thead"), "tr");
  heads.forEach((text) => put(head, "th", text));
  const body = put(table, "tbody");
  for (const cells of lines) {
    const row = put(body, "tr");
    cells.forEach((text, index) => {
      const cell = put(row, "td");
      if (index) spans(cell, text);
      else put(cell, "code", text);
    });
  }
}

// The members of an object, and of what lies in it.
function members(into, schema, depth = 0) {
  schema = seen(schema);
  if (!schema || depth > 4) return;
  for (const part of (schema.allOf || []).slice(0, SHOWN)) if (depth < 3) members(into, part, depth + 1);
  if (schema.type === "array") return members(into, schema.items, depth + 1);
  const all = Object.entries(schema.properties || {});
  const required = schema.required || [];
  rows(into, ["member", "type", "means"], all.map(([name, member]) =>
    [name + (required.includes(name) ? " *" : ""), typeOf(member), (seen(member) || {}).description || ""]));
  for (const [name, member] of all) {
    let inside = seen(member);
    if (inside && inside.type === "array") inside = seen(inside.items);
    if (!inside || !inside.properties) continue;
    later(into, name, (box) => members(box, inside, depth + 1));
  }
}

// A part that is made when it is opened: there are many.
function later(into, title, make) {
  const box = put(into, "details");
  spans(put(box, "summary"), title);
  box.addEventListener("toggle", () => make(box), { once: true });
}

function content(into, media) {
  for (const [type, { schema, example, examples }] of Object.entries(media || {})) {
    put(into, "p", type, { className: "quiet" });
    const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
    if (example !== undefined) put(into, "pre", text(example));
    members(into, schema);
    const named = Object.entries(examples || {});
    if (named.length) rows(into, ["code", "means"], named.map(([name, { summary }]) => [name, summary || ""]));
    for (const [name, { value }] of named.slice(0, 1)) later(into, `Example: \`${name}\``, (box) => put(box, "pre", text(value)));
    later(into, "Schema", (box) => put(box, "pre", JSON.stringify(seen(schema), null, 2)));
  }
}

function operation(into, path, verb, told) {
  const box = put(into, "section", undefined, { id: told.operationId });
  const head = put(box, "h3");
  put(head, "span", verb.toUpperCase(), { className: "verb " + verb });
  put(head, "code", path, { className: told.deprecated ? "deprecated" : "" });
  spans(put(box, "p"), told.summary);
  if (told.description) prose(box, told.description);
  const scopes = [...new Set((told.security || []).flatMap((needed) => Object.values(needed).flat()))];
  if (scopes.length) spans(put(box, "p"), "Needs a key with the scope " + scopes.map((scope) => "`" + scope + "`").join(", ") + ".");
  const parameters = (told.parameters || []).map(seen);
  if (parameters.length) put(box, "h4", "Parameters");
  rows(box, ["name", "in", "type", "means"], parameters.map((parameter) =>
    [parameter.name + (parameter.required ? " *" : ""), parameter.in, typeOf(parameter.schema), parameter.description || ""]));
  if (told.requestBody) {
    put(box, "h4", "Body");
    content(box, told.requestBody.content);
  }
  put(box, "h4", "Answers");
  for (const [status, answer] of Object.entries(told.responses)) {
    const problem = (answer.content || {})["application/problem+json"];
    const codes = problem ? Object.keys(problem.examples || {}).map((code) => "`" + code + "`").join(" ") : answer.description;
    const make = (part) => {
      const headers = Object.keys(answer.headers || {});
      if (headers.length) spans(put(part, "p"), "Headers: " + headers.map((name) => "`" + name + "`").join(", "));
      content(part, answer.content);
    };
    later(box, `${status} ${codes}`, make);
  }
}

function find(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const link of document.querySelectorAll("#contents a")) link.hidden = !words.every((word) => link.dataset.text.includes(word));
  for (const group of document.querySelectorAll("#contents > div")) group.hidden = ![...group.querySelectorAll("a")].some((link) => !link.hidden);
}

async function show() {
  const calls = document.getElementById("calls");
  const contents = document.getElementById("contents");
  const answer = await fetch("/openapi.json");
  if (answer.status === 401 || answer.status === 403) {
    calls.replaceChildren();
    put(calls, "h1", "Hopline");
    spans(put(calls, "p"), "The description needs an API key with the scope `read`.");
    const line = put(calls, "p");
    put(line, "a", "Log in", { href: "/login" });
    put(line, "span", ", and come back.");
    return;
  }
  if (!answer.ok) throw new Error("/openapi.json cannot be read: " + answer.status);
  whole = await answer.json();
  calls.replaceChildren();
  put(calls, "h1", `${whole.info.title} ${whole.info.version}`);
  if (whole.info.summary) put(calls, "p", whole.info.summary);
  prose(calls, whole.info.description);
  const line = put(calls, "p");
  put(line, "a", "openapi.json", { href: "/openapi.json" });
  for (const tag of whole.tags) {
    const lines = [];
    for (const [path, verbs] of Object.entries(whole.paths))
      for (const [verb, told] of Object.entries(verbs)) if (told.tags[0] === tag.name) lines.push([path, verb, told]);
    if (!lines.length) continue;
    const group = put(contents, "div");
    put(group, "h2", tag.name);
    put(calls, "h2", tag.name);
    prose(calls, tag.description);
    for (const [path, verb, told] of lines) {
      const link = put(group, "a", undefined, { href: "#" + encodeURIComponent(told.operationId) });
      put(link, "span", verb.toUpperCase(), { className: "verb " + verb });
      put(link, "span", path, { className: told.deprecated ? "deprecated" : "" });
      link.dataset.text = `${verb} ${path} ${told.operationId} ${told.summary}`.toLowerCase();
      operation(calls, path, verb, told);
    }
  }
  put(calls, "h2", "Problem codes");
  prose(calls, whole.components.schemas.ProblemCode.description);
  document.getElementById("find").addEventListener("input", (event) => find(event.target.value));
  // The place that the address names is there only now.
  if (location.hash) document.getElementById(named(location.hash.slice(1)))?.scrollIntoView();
}

// What an address names, also where that is no encoding of anything.
function named(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

show().catch((error) => { document.getElementById("calls").textContent = String(error); });
