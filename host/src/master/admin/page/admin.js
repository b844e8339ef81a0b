// The admin page: asks for the status each second and shows it. It puts nothing into the page but text, keeps the token in
// this tab only, never sends it (see auth.js), and says so when the server does not answer or is another one.
"use strict";

const BASE = "/debug/admin";
const KEY = "baton-token";
const POLL_MS = 1000;
const HIDDEN_POLL_MS = 10000;
const PATIENCE_MS = 4000;
// How often, and how long, a report is asked for that comes later than the answer.
const FOLLOW_MS = 250;
const FOLLOW_PATIENCE_MS = 120000;

const $ = (id) => document.getElementById(id);

/** An element with classes, text and children; never markup. */
function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  if (options.class) node.className = options.class;
  if (options.text !== undefined) node.textContent = options.text;
  if (options.label) node.dataset.label = options.label;
  if (options.title) node.title = options.title;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// --- The token: from the link's fragment, which never leaves the browser, into this tab's storage. ---

let session = null;

function useToken(token) {
  session = new Session(token, location.host, send);
  sessionStorage.setItem(KEY, token);
}

/** Another page of this address, from whatever server, finds no token in the storage. */
function forgetToken() {
  session = null;
  sessionStorage.removeItem(KEY);
}

function takeToken() {
  const match = /(?:^#|&)token=([0-9a-fA-F]+)/.exec(location.hash);
  const token = match?.[1] ?? sessionStorage.getItem(KEY) ?? "";
  if (isToken(token)) useToken(token);
  else forgetToken();
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
}

let askedForToken = null;

/** Asks the person once, however many requests want it. */
function askForToken(why) {
  askedForToken ??= new Promise((resolve) => {
    const dialog = $("ask-token");
    const complain = (text) => { $("token-wrong").textContent = text; $("token-wrong").hidden = !text; };
    const done = (event) => {
      event.preventDefault();
      const token = $("token").value.trim();
      if (!isToken(token)) return complain("This is no token: it has 64 hexadecimal digits.");
      $("token-form").removeEventListener("submit", done);
      useToken(token);
      $("token").value = "";
      askedForToken = null;
      dialog.close();
      resolve();
    };
    complain(why ?? "");
    $("token-form").addEventListener("submit", done);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return askedForToken;
}

/** A request as the browser sends it. An operation takes its time. */
async function send(method, path, headers) {
  const response = await fetch(path, {
    method,
    headers: { accept: "application/json", ...headers },
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal: method === "GET" ? AbortSignal.timeout(PATIENCE_MS) : undefined,
  });
  const body = await response.json().catch(() => null);
  return { status: response.status, proof: response.headers.get("baton-proof"), body };
}

const UNKNOWN = "The server at this address has not proved that it knows this page's token: the token was replaced, or another program has taken the address.";

/** The answer of the server that knows the token. At any other it stops, and waits for the person. */
async function call(method, path) {
  for (;;) {
    if (!session) {
      await askForToken();
      continue;
    }
    const used = session;
    try {
      const answer = await used.call(method, BASE + path);
      // It is there, and is the one: a reload of the page need not ask again.
      if (session === used) sessionStorage.setItem(KEY, used.token);
      return answer;
    } catch (error) {
      if (error instanceof Unreachable) sessionStorage.removeItem(KEY);
      if (!(error instanceof Unknown)) throw error;
      if (session === used) {
        forgetToken();
        showStopped();
      }
      await askForToken(UNKNOWN);
    }
  }
}

// --- Words ---

function duration(ms) {
  const s = ms / 1000;
  if (s < 1) return Math.round(ms) + " ms";
  if (s < 120) return Math.floor(s) + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}

const millis = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms)) + " ms";
const count = (n) => n.toLocaleString("en");

function causeText(cause) {
  switch (cause.by) {
    case "start": return "start";
    case "signal": return `${cause.signal} from pid ${cause.sender}`;
    case "admin": return `admin (${cause.peer})`;
    case "watcher": return `change of ${cause.path}`;
    case "crash": return `crash of generation ${cause.of}`;
    case "term": return `SIGTERM to generation ${cause.generation}`;
    case "handler": return `a handler of ${cause.plugin}`;
    default: return cause.by;
  }
}

const STATE_CLASS = { serving: "good", paused: "warn", standby: "warn", retiring: "warn", exited: "", starting: "warn", loading: "warn", proving: "warn", ready: "warn", committing: "warn" };
const RESULT_CLASS = { switched: "good", done: "good", refused: "bad", rolled_back: "bad", superseded: "warn", queued: "warn", running: "warn", shutting_down: "warn" };
const RESULT_TEXT = { rolled_back: "rolled back", shutting_down: "shutting down" };

/** One line that says how an operation stands. */
function verdict(report) {
  const result = RESULT_TEXT[report.result] ?? report.result;
  switch (report.result) {
    case "switched": {
      const from = report.from !== undefined ? `generation ${report.from} → ${report.generation}` : `generation ${report.generation}`;
      return `${result}: ${from}` + (report.ms ? ` in ${millis(report.ms.total)}` : "");
    }
    case "refused":
    case "rolled_back":
      return `${result}${report.stage ? " at " + report.stage : ""}${report.plugin ? " of " + report.plugin : ""}: ${report.error ?? ""}`;
    case "superseded":
      return result + (report.superseded_by ? ` by operation ${report.superseded_by}` : "");
    case "done":
      return report.cut?.length ? `ended generation ${report.cut.join(", ")}` : "nothing was draining";
    case "queued":
      return result + (report.queued ? ": " + report.queued : "");
    default:
      return result;
  }
}

function pluginsText(plugins) {
  return ["added", "changed", "removed", "unchanged"]
    .filter((kind) => plugins[kind].length)
    .map((kind) => `${plugins[kind].join(", ")} ${kind}`)
    .join("; ");
}

/** What else of the configuration changed: one line for each kind. */
function configLines(config) {
  const { addresses, tls, routes, keys, more } = config;
  const lists = [
    ["listens now on", addresses?.added], ["listens no more on", addresses?.removed], ["TLS changed of", tls],
    ["routes added", routes?.added], ["routes removed", routes?.removed],
  ];
  const lines = lists.filter(([, names]) => names?.length).map(([what, names]) => `${what}: ${names.join(", ")}`);
  for (const { key, from, to } of keys ?? []) {
    const hidden = from === undefined && to === undefined;
    lines.push(hidden ? `${key} changed` : `${key}: ${from ?? "unset"} → ${to ?? "unset"}`);
  }
  if (more) lines.push(`${more} more changes`);
  return lines;
}

function timingsText(ms) {
  return ["snapshot", "load", "prove", "switch"].map((part) => `${part} ${millis(ms[part])}`).join(" · ");
}

const CUT_TEXT = { busy: "in a request", head: "in a head", upgraded: "upgraded", http2: "HTTP/2", stream: "in a stream" };

function drainText(drain) {
  const parts = [`drained in ${duration(drain.ms)}`, `${count(drain.handed_over)} handed over`, `${count(drain.finished)} finished`];
  if (drain.lingered) parts.push(`${count(drain.lingered)} closed idle`);
  for (const [kind, n] of Object.entries(drain.cut)) if (n) parts.push(`${count(n)} cut (${CUT_TEXT[kind] ?? kind})`);
  if (drain.lost) parts.push(`${count(drain.lost)} lost`);
  return parts.join(", ");
}

function reportParts(report) {
  const parts = [el("p", { class: "verdict", text: `${report.verb} ${report.op} ${verdict(report)}` })];
  if (report.hint) parts.push(el("p", { text: "hint: " + report.hint }));
  if (report.serving !== undefined && report.result !== "switched") parts.push(el("p", { text: `generation ${report.serving} serves on` }));
  if (report.plugins) {
    const text = pluginsText(report.plugins);
    if (text) parts.push(el("p", { class: "quiet", text }));
  }
  for (const text of report.config ? configLines(report.config) : []) parts.push(el("p", { class: "quiet", text }));
  if (report.drain && report.cut) parts.push(el("p", { class: "quiet", text: drainText(report.drain) }));
  if (report.held) parts.push(el("p", { text: "not taken: " + report.held.map(changeText).join(", ") }));
  if (report.detail) parts.push(el("details", {}, el("summary", { text: "Details" }), el("pre", { text: report.detail })));
  return parts;
}

function showOutcome(kind, ...parts) {
  const outcome = $("outcome");
  outcome.className = "notice " + kind;
  outcome.replaceChildren(...parts);
  outcome.hidden = false;
}

// --- Operations ---

const UNDER_WAY = { reload: "Reloading …", restart: "Restarting …", rollback: "Rolling back …", cut: "Ending what drains …", shutdown: "Shutting down …" };

/** The report once it has ended. Its server may be changing its program, and not answer for a moment. */
async function ended(report) {
  const until = performance.now() + FOLLOW_PATIENCE_MS;
  while (["queued", "running"].includes(report.result) && performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
    try {
      const { status, body } = await call("GET", "/ops/" + report.op);
      if (status === 200) report = body;
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
    }
  }
  return report;
}

async function operate(verb, button) {
  button.disabled = true;
  button.dataset.busy = "yes";
  showOutcome("", el("p", { text: UNDER_WAY[verb] }));
  try {
    let { status, body } = await call("POST", "/" + verb);
    if (body.result) body = await ended(body);
    ending ||= body.result === "shutting_down";
    if (body.result) showOutcome(RESULT_CLASS[body.result] ?? "", ...reportParts(body));
    else showOutcome("bad", el("p", { class: "verdict", text: body.error ?? `answer ${status}` }), body.hint ? el("p", { text: "hint: " + body.hint }) : "");
  } catch (error) {
    showOutcome("bad", el("p", { class: "verdict", text: `No answer to the ${verb}: the server is gone or cannot be reached.` }));
  } finally {
    delete button.dataset.busy;
    button.disabled = false;
    if ($("state")) poll();
  }
}

// --- The status ---

let lastRequests = null;
let seen = null;
let ending = false;

/** Sets children only when their text changed, so that a selection or an open part survives the next second. */
const shown = new Map();
function replace(id, state, build) {
  const key = JSON.stringify(state);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  $(id).replaceChildren(...build());
}

function requestRate(status) {
  const total = status.generations.reduce((sum, g) => sum + g.load.requests, 0);
  const now = performance.now();
  const before = lastRequests;
  lastRequests = { total, now, pid: status.pid };
  if (!before || before.pid !== status.pid || total < before.total || now - before.now < 200) return null;
  return ((total - before.total) * 1000) / (now - before.now);
}

function figures(status) {
  // One that died may have left its counters standing.
  const alive = status.generations.filter((g) => g.state !== "exited");
  const sum = (key) => alive.reduce((total, g) => total + g.load[key], 0);
  const rate = requestRate(status);
  return [
    ["Serving", status.serving !== null ? "gen " + status.serving : "nothing"],
    ["Connections", count(sum("connections"))],
    ["In flight", count(sum("requests_in_flight"))],
    ["Requests/s", rate === null ? "–" : count(rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate))],
    ["Switches", count(status.switches)],
    ["Crashes", count(status.crashes)],
    ["Handed over", count(status.totals.handed_over)],
    ...nonZero(status.totals.limits),
    ...nonZero(status.totals.malformed, "malformed "),
    ...nonZero({ client_aborts: status.totals.client_aborts }),
  ];
}

/** Only what was counted: mostly there is nothing. */
function nonZero(counts, prefix = "") {
  return Object.entries(counts)
    .filter(([, hits]) => hits > 0)
    .map(([name, hits]) => [(prefix + name).replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase()), count(hits)]);
}

/** Of those that ended, one line each and not more than a few. */
const ENDED_SHOWN = 5;
const CLEAN_EXIT = "exit code 0";

function generationCard(g) {
  const load = g.load;
  if (g.state === "exited") {
    return el("article", { class: "generation exited" },
      el("div", { class: "top" },
        el("h3", { text: "Generation " + g.generation }),
        el("span", { class: "pill", text: "ended" }),
        el("span", { class: "quiet", text: [...g.plugins.map((p) => `${p.name} ${p.version}`), `${count(load.requests)} requests`].join(" · ") }),
        g.exit ? el("span", { class: g.exit === CLEAN_EXIT ? "quiet" : "exit", text: g.exit }) : null));
  }
  const number = (n, word) => el("span", {}, el("b", { text: count(n) }), " " + word);
  return el("article", { class: "generation " + g.state },
    el("div", { class: "top" },
      el("h3", { text: "Generation " + g.generation }),
      el("span", { class: "pill " + (STATE_CLASS[g.state] ?? ""), text: g.state }),
      el("span", { class: "quiet", text: `${g.pid !== null ? "pid " + g.pid + " · " : ""}${duration(g.age_ms)} old · by ${causeText(g.cause)}` }),
      g.deadline_ms !== undefined ? el("span", { class: "quiet", text: `ends in ${duration(g.deadline_ms)} at the latest` }) : null),
    el("p", { class: "counts" },
      number(load.connections, "connections"), number(load.idle, "idle"), number(load.requests_in_flight, "in flight"),
      load.http2 ? number(load.http2, "HTTP/2") : null, load.upgraded ? number(load.upgraded, "upgraded") : null,
      g.state === "retiring" && load.oldest_request_ms ? el("span", { text: "oldest request " + duration(load.oldest_request_ms) }) : null,
      number(load.requests, "requests"), load.failures ? number(load.failures, "failed") : null, load.panics ? number(load.panics, "panics") : null),
    g.plugins.length ? pluginTable(g.plugins) : g.state === "serving" ? el("p", { class: "quiet", text: "No plugin: every request is answered 503." }) : null);
}

function pluginTable(plugins) {
  const head = ["Plugin", "Version", "Mount", "SHA-256", "Built with"];
  const cell = (label, text, options = {}) => el("td", { label, ...options }, el("span", { text, class: options.mono ? "mono" : "" }));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { text })))),
    el("tbody", {}, ...plugins.map((p) => el("tr", {},
      cell("Plugin", p.name, { title: p.file }),
      cell("Version", p.version + (p.debug ? " (debug)" : "")),
      cell("Mount", p.mount, { mono: true }),
      cell("SHA-256", p.sha256.slice(0, 12), { mono: true, title: p.sha256 }),
      cell("Built with", `${p.rustc}, api ${p.api}`)))));
}

function operationItem(report) {
  const more = [causeText(report.cause)];
  if (report.ms && report.result === "switched") more.push(timingsText(report.ms));
  if (report.drain) more.push(drainText(report.drain));
  return el("li", {},
    el("div", {}, el("span", { class: "pill " + (RESULT_CLASS[report.result] ?? ""), text: `${report.verb} ${report.op}` }), " " + verdict(report)),
    report.hint ? el("div", { class: "quiet", text: "hint: " + report.hint }) : null,
    ...(report.config ? configLines(report.config) : []).map((text) => el("div", { class: "quiet", text })),
    el("div", { class: "quiet", text: more.join(" · ") }));
}

function notice(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
  $(id).hidden = !text;
}

function changeText(change) {
  switch (change.what) {
    case "plugin": return `${change.plugin} (${change.sha256.slice(0, 8)})`;
    case "removal": return `the removal of ${change.plugin}`;
    case "settings": return `[plugins.${change.plugin}]`;
    case "config": return "the configuration";
    default: return "";
  }
}

function holdText(status) {
  const held = status.held.map((h) => [changeText(h.change), h.why]).filter(([text]) => text);
  const names = held.map(([text, why]) => `${text}, ${why.replace("_", " ")}`).join("; ");
  const pin = status.pinned ? `Pinned to generation ${status.pinned.generation} since ${status.pinned.since}. ` : "";
  return pin + (names ? `Not taken by a reload until changed: ${names}.` : "");
}

function watchText(watcher) {
  const doing = { off: "not watched", watching: "watched", settling: "watched; a change settles", reloading: "watched; a change is taken" }[watcher.activity];
  return watcher.why ? `${doing}, by looking now and then: ${watcher.why}` : doing;
}

function setState(kind, text) {
  const state = $("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = "pill " + kind;
}

function certificateItem(c) {
  const ends = { valid: `until ${c.not_after}`, not_yet_valid: "not valid yet", expires_soon: `expires in ${c.left}`, expired: `expired ${c.left} ago` };
  const loud = c.validity === "valid" ? "quiet" : "loud";
  return el("li", { title: c.cert }, el("span", { text: c.names.join(", ") || c.cert }), el("span", { class: "quiet", text: ` ${c.server} ` }), el("span", { class: loud, text: ends[c.validity] }));
}

function show(status) {
  seen = new Date();
  ending = status.shutting_down;
  $("gone").hidden = true;
  document.title = `${status.name} · Baton`;
  $("name").textContent = status.name;
  $("about").textContent = `Baton ${status.version} · pid ${status.pid} · up ${duration(status.uptime_ms)}`;
  if (status.shutting_down) setState("warn", "shutting down");
  else if (status.ready) setState("good", "serving");
  else setState("bad", "not serving");
  const draining = status.generations.some((g) => g.state === "retiring");
  $("cut").hidden = !draining && !$("cut").dataset.busy;
  for (const [id, usable] of [["reload", !status.shutting_down], ["rollback", !status.shutting_down], ["restart", !status.shutting_down], ["cut", draining], ["shutdown", !status.shutting_down]]) {
    if (!$(id).dataset.busy) $(id).disabled = !usable;
  }
  notice("alert", status.alert ?? "");
  notice("held", holdText(status));
  notice("holding", status.watcher.holding ? `The watcher waits for another change: ${status.watcher.holding}` : "");
  const numbers = figures(status);
  replace("figures", numbers, () => numbers.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
  const ended = status.generations.filter((g) => g.state === "exited").slice(0, ENDED_SHOWN);
  const generations = [...status.generations.filter((g) => g.state !== "exited"), ...ended];
  // Ages are shown to the second; below that nothing needs to be drawn anew.
  const rounded = generations.map((g) => ({ ...g, age_ms: duration(g.age_ms), deadline_ms: g.deadline_ms && duration(g.deadline_ms), load: { ...g.load, oldest_request_ms: duration(g.load.oldest_request_ms) } }));
  replace("generations", rounded, () => generations.length ? generations.map(generationCard) : [el("p", { class: "quiet", text: "None yet." })]);
  replace("listeners", status.listeners, () => status.listeners.length
    ? status.listeners.map((l) => el("li", {}, el("span", { class: "mono", text: l.address }), el("span", { class: "quiet", text: ` ${l.server}${l.scheme === "https" ? ", TLS" : ""}` })))
    : [el("li", { class: "quiet", text: "None." })]);
  // To the hour: so long nothing needs to be drawn anew.
  const certificates = (status.certificates || []).map((c) => ({ ...c, left: duration(Math.abs(Math.trunc(c.expires_in_s / 3600)) * 3600000), expires_in_s: 0 }));
  replace("certificates", certificates, () => certificates.map(certificateItem));
  const operations = status.operations.slice(0, 8);
  replace("operations", operations, () => operations.length ? operations.map(operationItem) : [el("li", { class: "quiet", text: "None yet." })]);
  $("where").textContent = `Plugins from ${status.plugin_dir} · ${watchText(status.watcher)} · ${count(status.master_fds)} descriptors in the master`;
}

function showGone() {
  setState(ending ? "warn" : "bad", ending ? "shut down" : "no answer");
  $("reload").disabled = $("rollback").disabled = $("restart").disabled = $("cut").disabled = $("shutdown").disabled = true;
  const gone = $("gone");
  const text = ending
    ? `The server has shut down, as it was asked to. What follows is from ${seen.toLocaleTimeString()}.`
    : seen
    ? `The server does not answer. What follows is from ${seen.toLocaleTimeString()}; it is asked again each second.`
    : "The server does not answer; it is asked again each second.";
  if (gone.textContent !== text) gone.textContent = text;
  gone.className = "notice " + (ending ? "warn" : "bad");
  gone.hidden = false;
}

/** Another server may be there: nothing is shown of it, and nothing asked. */
function showStopped() {
  if (!$("state")) return;
  showGone();
  setState("bad", "stopped");
  const since = seen ? ` What follows is from ${seen.toLocaleTimeString()}.` : "";
  $("gone").textContent = `${UNKNOWN} This page has stopped. It has not sent the token, and has forgotten it: run "baton admin" on the server and open the link it prints.${since}`;
  $("gone").className = "notice bad";
}

let timer = null;
let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  try {
    const { status, body } = await call("GET", "/status");
    if (status === 200) show(body);
    else showGone();
  } catch (error) {
    // A mistake of ours must not look like the server's.
    if (!(error instanceof Unreachable)) console.error(error);
    showGone();
  } finally {
    polling = false;
    timer = setTimeout(poll, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
  }
}

takeToken();
addEventListener("hashchange", () => { takeToken(); location.reload(); });

if ($("act")) {
  $("act").addEventListener("click", (event) => operate(event.target.dataset.verb, event.target));
} else {
  $("reload").addEventListener("click", (event) => operate("reload", event.target));
  // What cannot be taken back is asked about first.
  for (const verb of ["rollback", "restart", "cut", "shutdown"]) {
    const ask = $("ask-" + verb);
    $(verb).addEventListener("click", () => ask.showModal());
    $(verb + "-no").addEventListener("click", () => ask.close());
    $(verb + "-yes").addEventListener("click", () => { ask.close(); operate(verb, $(verb)); });
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  poll();
}
