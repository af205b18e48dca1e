// The table of recent requests. Only rows in sight are elements: a thousand cost what thirty do.

import { request } from "./access.js";
import { byId, h } from "./dom.js";
import { age, count, DASH, kind, seconds } from "./format.js";

const ROW_PX = 26;
const SPARE = 6;
const MAX_ROWS = 1000;
const REFETCH_MS = 3000;

const known = new Map(); // by number
let order = []; // numbers, newest first
let chosen = null;
let onChoose = () => {};
let offset = 0; // from this browser's clock to the gateway's, seconds
let fetchedAt = 0;
let isWaiting = false;

export async function startRequests(choose) {
  onChoose = choose;
  byId("scroller").addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe(byId("scroller"));
  await refetch();
}

export function showChosen(id) {
  chosen = id;
  draw();
}

/** Take what has changed; where more has than was told, ask for all. */
export function takeRequests(requests, at) {
  offset = at - Date.now() / 1000;
  const isNew = requests.changed.some(({ number }) => !known.has(number));
  const gap = requests.num_left_out > 0 || (requests.num_taken > (order[0] ?? 0) && requests.num_taken > Math.max(0, ...requests.changed.map((r) => r.number)));
  merge(requests.changed, isNew);
  if (gap && performance.now() - fetchedAt > REFETCH_MS) refetch();
  byId("requests-sum").textContent = `${count(requests.num_running)} running, ${count(requests.num_taken)} since the gateway's start`;
}

async function refetch() {
  fetchedAt = performance.now();
  const response = await request(`/v1/requests?limit=${MAX_ROWS}`);
  if (response.ok) merge((await response.json()).data, true);
}

function merge(rows, isNew) {
  for (const row of rows) {
    if (row.number < (order[0] ?? 0) - 1e6) continue;
    known.set(row.number, row);
  }
  if (isNew) {
    order = [...known.keys()].sort((a, b) => b - a);
    for (const number of order.splice(MAX_ROWS)) known.delete(number);
  }
  draw();
}

function draw() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => { isWaiting = false; drawNow(); });
}

function drawNow() {
  const box = byId("scroller");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - SPARE);
  const end = Math.min(order.length, first + Math.ceil(box.clientHeight / ROW_PX) + 2 * SPARE);
  const focused = document.activeElement?.dataset?.number;
  byId("table").setAttribute("aria-rowcount", order.length + 1);
  byId("rows").replaceChildren(
    space(first), ...order.slice(first, end).map((number, i) => row(known.get(number), first + i + 2)), space(order.length - end),
    ...(order.length ? [] : [h("tr", {}, h("td", { colspan: 12, class: "muted" }, "No request has come yet. Ask something above."))]),
  );
  if (focused) byId("rows").querySelector(`[data-number="${focused}"]`)?.focus({ preventScroll: true });
}

const space = (rows) => h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: 12, style: { height: `${rows * ROW_PX}px` } }));

function row(r, index) {
  const isChosen = r.id === chosen;
  const number = (text) => h("td", { class: "num" }, text);
  const shortId = r.id.length > 14 ? `${r.id.slice(0, 13)}…` : r.id;
  return h("tr", { "aria-rowindex": index, class: isChosen ? "chosen" : null },
    h("td", {}, h("button", {
      type: "button", class: "link", "data-number": r.number, "aria-pressed": String(isChosen), title: r.id,
      "aria-label": `Timeline of request ${r.number}, ${r.id}`, onclick: () => onChoose(r.id),
    }, shortId)),
    h("td", {}, age(Date.now() / 1000 + offset - r.started_at)),
    h("td", {}, h("span", { class: `state ${r.state}` }, r.error ?? r.state)),
    h("td", {}, kind(r.plan)),
    h("td", {}, r.prefill ? r.prefill.worker : DASH),
    h("td", {}, r.decode ? r.decode.worker : DASH),
    number(count(r.prompt_tokens)), number(r.state === "running" ? DASH : count(r.cached_tokens)), number(count(r.completion_tokens)),
    number(seconds(r.ttft_s)), number(seconds(r.forecast_ttft_s)), number(seconds(r.duration_s)),
  );
}
