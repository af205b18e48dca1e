// One request's timeline: fetched when it is chosen, again while it runs, and once more when it has ended.

import { request } from "./access.js";
import { byId, facts, h, table } from "./dom.js";
import { bytes, count, DASH, kind, seconds } from "./format.js";
import { legend, waterfall } from "./waterfall.js";

let shown = null; // the id that is shown
let timeline = null;

export function startTimeline(close) {
  byId("close").addEventListener("click", close);
  byId("whole").addEventListener("change", draw);
}

export async function openTimeline(id) {
  const isOther = id !== shown;
  shown = id;
  const response = await request(`/v1/requests/${encodeURIComponent(id)}/timeline`);
  if (shown !== id) return;
  timeline = response.ok ? await response.json() : null;
  byId("timeline").hidden = false;
  if (timeline) draw();
  else byId("waterfall").replaceChildren(h("p", { class: "bad" }, (await response.json()).error.message));
  if (isOther) {
    byId("timeline").scrollIntoView({ block: "start" });
    byId("timeline-title").focus({ preventScroll: true });
  }
}

export function closeTimeline() {
  shown = timeline = null;
  byId("timeline").hidden = true;
}

/** Look again at a request that is shown and still changes. */
export function takeChanges(changed) {
  if (timeline && timeline.state === "running" && changed.some(({ id }) => id === shown)) openTimeline(shown);
}

function draw() {
  if (!timeline) return;
  const choice = timeline.choices[0];
  const attempt = choice?.attempts.at(-1);
  const plan = attempt?.plan;
  byId("timeline-sum").textContent = [timeline.id, timeline.kind, timeline.error ?? timeline.state].join(" · ");
  const parts = [h("dl", { class: "facts" }, facts(factsOf(timeline, plan, attempt)))];
  if (choice) parts.push(legend(), h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Waterfall of this request" }, waterfall(timeline, byId("whole").checked)));
  if (plan?.candidates.length) parts.push(h("details", { open: true }, h("summary", {}, "Ways that were compared"), ways(plan)));
  if (timeline.num_choices > timeline.choices.length) parts.push(h("p", { class: "muted" }, `Phases of the first ${timeline.choices.length} of ${timeline.num_choices} choices are kept.`));
  const open = [...byId("waterfall").querySelectorAll("details")].map((element) => element.open);
  byId("waterfall").replaceChildren(...parts, ...(choice ? [timesTable(timeline)] : []));
  byId("waterfall").querySelectorAll("details").forEach((element, i) => { element.open = open[i] ?? element.open; });
}

function factsOf(t, plan, attempt) {
  const sources = (plan?.decode_sources ?? []).map((s) => `blocks ${s.first}–${s.end - 1} from ${s.dc}`).join(", ");
  const fetched = attempt?.decode.worker_times?.fetched_bytes;
  return [
    ["plan", kind(t.plan)],
    ["first token", `${seconds(t.ttft_s)}, forecast ${seconds(t.forecast_ttft_s)}`],
    ...(plan?.alone_s ? [["decode alone, forecast", seconds(plan.alone_s)]] : []),
    ["prompt", `${count(t.prompt_tokens)} tokens, ${t.state === "running" ? DASH : count(t.cached_tokens)} cached`],
    ["answer", `${count(t.completion_tokens)} tokens in ${seconds(t.duration_s)}`],
    ...(sources ? [["KV", `${sources}; ${bytes(fetched)} fetched; codec ${plan.codec}`]] : []),
  ];
}

function ways(plan) {
  return table("Ways that were compared, the cheapest first", [
    ["way", (way) => `${kind(way.kind)}${way.is_chosen ? " ✓" : ""}`],
    ["computed by", (way) => way.worker], ["in", (way) => way.dc],
    ["cached blocks", (way) => count(way.cached_blocks), true],
    ["first token", (way) => seconds(way.ttft_s), true], ["cost", (way) => seconds(way.cost_s), true],
  ], plan.candidates);
}

function timesTable(t) {
  const rows = [["body read", t.body_read_s], ["prompt prepared", t.prepared_s]];
  t.choices.forEach((choice, i) => {
    const of = t.choices.length > 1 ? `choice ${i + 1}: ` : "";
    rows.push([`${of}planned`, choice.planned_s], [`${of}turn came`, choice.passed_s]);
    for (const attempt of choice.attempts) {
      for (const p of attempt.prefills) {
        const w = p.worker_times ?? {};
        rows.push([`${of}${p.worker} called`, p.sent_s], [`${p.worker} began computing`, w.ready_s], [`${p.worker} computed`, w.computed_s], [`${p.worker} stored all`, w.stored_s]);
        if (p.error) rows.push([`${p.worker} failed: ${p.error}`, p.ended_s]);
      }
      const d = attempt.decode.worker_times ?? {};
      rows.push([`${of}${attempt.decode.worker} called`, attempt.decode.sent_s], [`${attempt.decode.worker} opened the gate of layer 0`, d.gate_opened_s], [`${attempt.decode.worker} computed the tail`, d.tail_computed_s]);
      if (attempt.rescued_s !== null) rows.push(["decode computes what is late", attempt.rescued_s]);
      rows.push([`${of}first token`, attempt.first_token_s]);
      if (attempt.error) rows.push([`${attempt.decode.worker} failed: ${attempt.error}`, attempt.ended_s]);
    }
  });
  rows.push(["end", t.ended_s]);
  const known = rows.filter(([, at]) => at !== null && at !== undefined);
  return h("details", {}, h("summary", {}, "The same as a table"),
    table("Times of this request", [["what", (row) => row[0]], ["after", (row) => seconds(row[1]), true]], known));
}
