"use strict";
// Shows `/openapi.json` to people. Nothing in it is read as markup.

const KEY = "backplane-key";
const byId = (id) => document.getElementById(id);

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

let api = {};

const follow = (schema) =>
  schema?.$ref ? schema.$ref.slice(2).split("/").reduce((at, step) => at[step], api) : schema;

/** A type in a few words. */
function typeOf(schema) {
  const name = schema?.$ref?.split("/").pop();
  if (name) return name;
  if (schema?.anyOf) return schema.anyOf.map(typeOf).filter((type) => type !== "null").join(" or ");
  if (schema?.enum) return schema.enum.join(" | ");
  const type = [schema?.type ?? "any"].flat().filter((type) => type !== "null").join(" or ");
  return type === "array" ? `list of ${typeOf(schema.items ?? {})}` : type;
}

/** The schemas that a schema leads to, itself first. */
function reached(schema, seen = new Map()) {
  for (const part of [schema, schema?.items, ...(schema?.anyOf ?? []), ...(schema?.oneOf ?? [])]) {
    const name = part?.$ref?.split("/").pop();
    if (name && !seen.has(name)) {
      const found = follow(part);
      seen.set(name, found);
      reached(found, seen);
      Object.values(found.properties ?? {}).forEach((member) => reached(member, seen));
    } else if (part && part !== schema) {
      reached(part, seen);
    }
  }
  return seen;
}

function members(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([member, its]) => element("tr", "",
    element("td", "", element("code", "", member), schema.required?.includes(member) ? " required" : ""),
    element("td", "", typeOf(its)),
    element("td", "quiet", its.description ?? "")));
  if (!rows.length) return null;
  return element("div", "", element("h3", "", name), element("table", "", ...rows));
}

function bodyOf(title, content) {
  return Object.entries(content ?? {}).flatMap(([media, { schema }]) => {
    const tables = [...reached(schema)].map(([name, found]) => members(name, found)).filter(Boolean);
    return [element("h3", "", `${title} (${media})`), ...tables];
  });
}

function curl(method, path, operation) {
  const lines = [`curl ${location.origin}${path}`];
  if (method !== "get") lines[0] += ` -X ${method.toUpperCase()}`;
  if (operation.security.length) lines.push(`  -H "authorization: Bearer $BACKPLANE_KEY"`);
  if (operation.requestBody) lines.push(`  -H "content-type: application/json" -d '{}'`);
  return lines.join(" \\\n");
}

function operationOf(path, method, operation) {
  const parameters = (operation.parameters ?? []).map(follow).map((parameter) => element("tr", "",
    element("td", "", element("code", "", parameter.name), parameter.required ? " required" : ""),
    element("td", "", parameter.in),
    element("td", "quiet", parameter.description ?? "")));
  return element("details", "",
    element("summary", "", element("span", "method", method.toUpperCase()), element("code", "", path),
      element("span", "quiet", ` ${operation.summary}`)),
    element("div", "operation",
      operation.description ? element("p", "quiet", operation.description) : null,
      element("p", "quiet", `For: ${operation["x-role"]}`),
      element("pre", "", curl(method, path, operation)),
      parameters.length ? element("table", "", ...parameters) : null,
      ...bodyOf("Takes", operation.requestBody?.content),
      ...bodyOf("Gives", operation.responses["200"].content)));
}

async function start() {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch("/openapi.json", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (response.status === 401) {
    byId("about").textContent = "needs a key: give it on the page first";
    return;
  }
  api = await response.json();
  byId("about").textContent = `OpenAPI ${api.openapi}, version ${api.info.version}`;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const group = groups.get(operation.tags[0]) ?? [];
      groups.set(operation.tags[0], [...group, operationOf(path, method, operation)]);
    }
  }
  byId("docs").replaceChildren(...[...groups].map(([tag, operations]) =>
    element("section", "card", element("h2", "", tag), ...operations)));
}

start().catch((error) => { byId("about").textContent = error.message; });
