// Datacenters with their workers and pools, and the links between them at the rates that their counters show.

import { byId, h, svg, table } from "./dom.js";
import { bytes, count, percent, perSecond, seconds } from "./format.js";

const RATE_WINDOW_S = 3;
const MAX_SHOWN = 60;

/** Makes rates of a counter that may begin anew: over the last seconds, from the counter's own values only. */
class Rate {
  samples = [];

  add(at, value) {
    const last = this.samples.at(-1);
    if (last && value < last[1]) this.samples = [];
    this.samples.push([at, value]);
    while (this.samples.length > 2 && this.samples[1][0] < at - RATE_WINDOW_S) this.samples.shift();
  }

  get perSecond() {
    if (this.samples.length < 2) return 0;
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    return last[0] > first[0] ? (last[1] - first[1]) / (last[0] - first[0]) : 0;
  }
}

const rates = new Map();
const lanes = new Map();
const shown = new Map(); // of each datacenter: what its card was made of

export function showCluster(state) {
  const root = byId("dcs");
  const isPair = state.datacenters.length === 2;
  root.classList.toggle("two", isPair);
  const cards = state.datacenters.map((dc) => card(dc, state));
  const links = lanesOf(state);
  // A pair is drawn from where prompts come to where they are decoded.
  const wanted = isPair ? [cards[1], links, cards[0]] : [...cards, links];
  if (wanted.some((element, i) => root.children[i] !== element) || root.children.length !== wanted.length) {
    root.replaceChildren(...wanted);
  }
}

function card(dc, state) {
  const workers = state.workers.filter((worker) => worker.dc === dc);
  const pools = state.pools.filter((pool) => pool.dc === dc);
  const key = JSON.stringify([workers, pools]);
  const old = shown.get(dc);
  if (old?.key === key) return old.element;
  const element = old?.element ?? h("div", { class: "dc", "data-dc": dc });
  element.replaceChildren(
    h("h3", {}, dc, dc === state.home ? h("span", { class: "muted" }, "home of this gateway") : null),
    table(`Workers of ${dc}`, [
      ["worker", (w) => w.id],
      ["state", stateOf],
      ["run", (w) => count(w.running), true],
      ["wait", (w) => count(w.waiting), true],
      ["queue", (w) => seconds(w.queued_s), true],
      ["tok/s", (w) => (w.tokens_per_s ? count(w.tokens_per_s) : "–"), true],
      ["KV", meter],
    ], workers.slice(0, MAX_SHOWN)),
    table(`Pools of ${dc}`, [
      ["pool", (p) => p.id],
      ["state", stateOf],
      ["memory", (p) => bytes(p.bytes), true],
      ["used", meter],
    ], pools.slice(0, MAX_SHOWN)),
  );
  const left = workers.length + pools.length - Math.min(workers.length, MAX_SHOWN) - Math.min(pools.length, MAX_SHOWN);
  if (left > 0) element.append(h("p", { class: "muted" }, `and ${left} more`));
  shown.set(dc, { key, element });
  return element;
}

function stateOf(process) {
  return h("span", { class: `state ${process.state}`, title: process.reason }, process.reason ?? process.state);
}

function meter(process) {
  if (process.kv_usage === null) return "–";
  return h("span", {}, h("span", { class: "meter", "aria-hidden": "true" },
    h("i", { style: { width: `${process.kv_usage * 100}%` } })), percent(process.kv_usage));
}

let list = null;

function lanesOf(state) {
  list ??= h("ul", { class: "lanes", "aria-label": "Links between datacenters" });
  const order = new Map(state.datacenters.map((dc, i) => [dc, i]));
  const links = [...state.links].sort((a, b) => order.get(b.from) - order.get(a.from));
  const wanted = links.map((link) => lane(link, state.at, order.get(link.from) < order.get(link.to)));
  if (!wanted.length) wanted.push(lanes.get("") ?? keep("", h("li", { class: "muted lane" }, "No link has carried anything yet.")));
  if (wanted.some((element, i) => list.children[i] !== element) || list.children.length !== wanted.length) {
    list.replaceChildren(...wanted);
  }
  return list;
}

const keep = (key, element) => { lanes.set(key, element); return element; };

function lane(link, at, isBack) {
  const key = `${link.from} → ${link.to}`;
  const rate = rates.get(key) ?? new Rate();
  rates.set(key, rate);
  rate.add(at, link.crossed_bytes);
  const element = lanes.get(key) ?? keep(key, h("li", { class: "lane" }));
  const now = rate.perSecond;
  if (!element.children.length) {
    const line = svg("path", { d: isBack ? "M200 6H8" : "M0 6H192" });
    const arrow = svg("path", { class: "arrow", d: isBack ? "M0 6l9-4v8z" : "M200 6l-9-4v8z" });
    element.append(
      h("span", {}, key), svg("svg", { viewBox: "0 0 200 12", "aria-hidden": "true", preserveAspectRatio: "none" }, line, arrow),
      h("b", {}), h("span", { class: "muted" }), h("span", { class: "muted" }),
    );
  }
  const [, picture, speed, carried, ways] = element.children;
  element.classList.toggle("moving", now > 0);
  // From 10 kB/s to 10 GB/s the dashes go from slow to quick, and the line from thin to thick.
  const size = Math.min(1, Math.max(0, (Math.log10(Math.max(now, 1e4)) - 4) / 6));
  picture.firstChild.style.animationDuration = `${(1.6 - 1.4 * size).toFixed(2)}s`;
  picture.firstChild.style.strokeWidth = (1.5 + 4 * size).toFixed(1);
  speed.textContent = now > 0 ? `${perSecond(now)} now` : "idle";
  carried.textContent = `${bytes(link.crossed_bytes)} so far${link.backlog_bytes ? `, ${bytes(link.backlog_bytes)} to come` : ""}`;
  ways.textContent = `goodput ${perSecond(link.goodput_bytes_per_s)}, RTT ${seconds(link.round_trip_s)}`;
  return element;
}
