"use strict";
// The page's script: shows what the host says of itself, and a chat. Nothing that comes from the server is ever read
// as markup.

const byId = (id) => document.getElementById(id);
const KEY = "backplane-key";
const REFRESH_MS = 4000;

/** An element with text and children. */
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.body) headers["content-type"] = "application/json";
  const response = await fetch(path, { ...options, headers });
  // An unready host answers 503 with a body worth showing.
  if (response.ok || path === "/readyz") return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.message ?? response.statusText);
}

const read = async (path) => (await ask(path)).json();

// ---- what the host says of itself

function size(bytes) {
  if (!bytes) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const number = bytes / 2 ** (10 * power);
  return `${number < 10 && power ? number.toFixed(1) : Math.round(number)} ${units[power]}`;
}

const COLOURS = { ready: "good", ok: "good", loading: "warn", closing: "warn", degraded: "warn", failed: "bad", down: "bad" };

const pill = (text) => element("span", `pill ${COLOURS[text] ?? ""}`, text);
const facts = (...all) => element("p", "quiet", all.filter(Boolean).join(" · "));

function modelRow(model, admin) {
  const name = model.name ?? model.id;
  const head = element("div", "row", element("span", "name", name), pill(model.state));
  if (admin && (model.state === "idle" || model.state === "failed")) head.append(action("Load", name, "load"));
  if (admin && model.state === "ready") head.append(action("Unload", name, "unload"));
  const running = model.running;
  return element("li", "", head,
    facts(model.capabilities?.join(", "), model.format, size(model.size),
      model.aliases?.length ? `also ${model.aliases.join(", ")}` : ""),
    running ? facts(`${size(running.memory_bytes)} on ${running.device || "cpu"}`,
      `${running.busy}/${running.slots} busy`, running.queued ? `${running.queued} waiting` : "",
      running.expires_in === null ? "stays open" : `closes in ${Math.ceil(running.expires_in)} s`) : null,
    model.problem ? element("p", "problem", model.problem) : null);
}

function action(label, model, verb) {
  const button = element("button", "plain", label);
  button.type = "button";
  button.setAttribute("aria-label", `${label} ${model}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const path = model.split("/").map(encodeURIComponent).join("/");
      await ask(`/admin/v1/models/${path}/${verb}`, { method: "POST" });
    } catch (error) {
      say("failed", error.message);
    }
    await refresh();
  });
  return button;
}

const pluginRow = (plugin) => element("li", "",
  element("div", "row", element("span", "name", plugin.id), pill(plugin.ready ? "ready" : plugin.shadowed_by ? "idle" : "failed")),
  facts(plugin.version, plugin.isolation, plugin.capabilities.join(", "),
    plugin.shadowed_by ? `shadowed by ${plugin.shadowed_by}` : ""),
  plugin.problem ? element("p", "problem", plugin.problem) : null);

const partRow = (part) => element("li", "",
  element("div", "row", element("span", "name", part.part), pill(part.state)),
  part.detail || part.restarts ? facts(part.detail, part.restarts ? `restarted ${part.restarts}×` : "") : null);

function fill(list, rows, empty) {
  list.replaceChildren(...(rows.length ? rows : [element("li", "quiet", empty)]));
}

/** Replaces a list only when it differs, so that focus and selection outlive a refresh. */
const shown = new Map();
function show(id, data, rows, empty) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  fill(byId(id), rows(), empty);
}

function showChoices(models) {
  const names = models.filter((model) => model.capabilities?.includes("chat")).map((model) => model.name ?? model.id);
  const select = byId("model");
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  select.disabled = byId("send").disabled = names.length === 0;
  byId("figures").textContent = names.length ? "" : "No model here chats: install one with `backplane pull smollm2`.";
}

async function refresh() {
  try {
    const [health, alive] = await Promise.all([read("/readyz"), read("/healthz")]);
    byId("state").textContent = health.ready ? "ready" : "not ready";
    byId("state").className = `pill ${health.ready ? "good" : "bad"}`;
    byId("about").textContent = `version ${alive.version}`;
    show("parts", health.parts, () => health.parts.map(partRow), "Nothing is watched.");
    const me = await read("/admin/v1/whoami");
    const admin = me.role === "admin";
    const models = (await read(admin ? "/admin/v1/models" : "/v1/models")).data;
    show("models", models, () => models.map((model) => modelRow(model, admin)), "None is installed.");
    showChoices(models);
    byId("plugins-card").hidden = !admin;
    if (admin) {
      const plugins = (await read("/admin/v1/plugins")).data;
      show("plugins", plugins, () => plugins.map(pluginRow), "None was found.");
    }
    askForKey(false);
  } catch (error) {
    if (error.status === 401) {
      askForKey(true, sessionStorage.getItem(KEY) ? error.message : "");
    } else {
      byId("state").textContent = error.status ? error.message : "not reachable";
      byId("state").className = "pill bad";
    }
  }
}

function askForKey(wanted, problem = "") {
  byId("key-form").hidden = !wanted;
  byId("main").hidden = wanted;
  byId("forget").hidden = wanted || !sessionStorage.getItem(KEY);
  if (wanted) byId("key-problem").textContent = problem;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  refresh();
});

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  refresh();
});

// ---- the chat

let conversation = [];
let running = null;

function say(role, text) {
  const line = element("li", role, text);
  byId("log").append(line);
  line.scrollIntoView({ block: "end" });
  return line;
}

/** The data of each event of a stream. Events may be split anywhere. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function answer() {
  const line = say("assistant", "");
  const started = performance.now();
  let first = null, text = "", usage = null;
  running = new AbortController();
  byId("send").textContent = "Stop";
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      body: JSON.stringify({
        model: byId("model").value, messages: conversation, stream: true, stream_options: { include_usage: true },
      }),
    });
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      usage = piece.usage ?? usage;
      const more = piece.choices[0]?.delta?.content ?? "";
      if (more && first === null) first = performance.now();
      text += more;
      line.append(more);
      const log = byId("log");
      if (log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
    }
    const ended = performance.now();
    const rate = usage && first && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / ((ended - first) / 1000) : null;
    byId("figures").textContent = [
      usage ? `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out` : "",
      first ? `first after ${Math.round(first - started)} ms` : "",
      rate ? `${rate.toFixed(1)} tokens/s` : "",
    ].filter(Boolean).join(" · ");
  } catch (error) {
    if (error.name === "AbortError") byId("figures").textContent = "Stopped.";
    else say("failed", error.message);
  } finally {
    if (text) conversation.push({ role: "assistant", content: text });
    else line.remove();
    running = null;
    byId("send").textContent = "Send";
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) { running.abort(); return; }
  const text = byId("prompt").value.trim();
  if (!text) return;
  byId("prompt").value = "";
  conversation.push({ role: "user", content: text });
  say("user", text);
  answer();
});

byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) byId("ask").requestSubmit();
});

byId("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  byId("log").replaceChildren();
  byId("figures").textContent = "";
});

refresh();
setInterval(() => { if (!document.hidden && byId("key-form").hidden) refresh(); }, REFRESH_MS);
