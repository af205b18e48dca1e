// A request's phases as bars over time. Every bar is two times of the timeline, and nothing else.

import { h } from "./dom.js";
import { bytes, count, seconds } from "./format.js";

const LEGEND = [
  ["queue", "waiting, transport"], ["compute", "computing"], ["wire", "a layer's entries on their way"],
  ["soft", "the same layer, between its first and its last chunk"], ["gate-soft", "landed, an earlier layer has not"], ["gate", "the layer's gate is open"],
  ["token", "tokens"], ["line", "first token"], ["line forecast", "its forecast"],
];

export function legend() {
  return h("p", { class: "legend", "aria-hidden": "true" }, LEGEND.map(([look, text]) => h("span", {}, h("i", { class: look }), text)));
}

/** Return the waterfall of a timeline's first choice: up to a little after its first token, or all of it. */
export function waterfall(timeline, isWhole) {
  const choice = timeline.choices[0];
  const first = choice.attempts.map((attempt) => attempt.first_token_s).find((at) => at !== null);
  const end = Math.max(timeline.duration_s, 1e-4);
  const span = isWhole || first === undefined ? end : Math.min(end, first * 1.12 + 0.002);
  const fall = new Fall(span);
  fall.group("gateway");
  fall.bar("receive", 0, timeline.body_read_s, "queue");
  fall.bar("tokenise, hash", timeline.body_read_s, timeline.prepared_s, "compute");
  fall.bar("plan", choice.begun_s, choice.planned_s, "compute");
  if (choice.has_waited) fall.bar("wait for a turn", choice.planned_s, choice.passed_s, "queue");
  for (const attempt of choice.attempts) showAttempt(fall, attempt);
  fall.group("answer");
  showTokens(fall, choice, timeline);
  const forecast = choice.planned_s === null ? null : (choice.passed_s ?? choice.planned_s) + (timeline.forecast_ttft_s ?? NaN);
  return fall.element(first, forecast, summaryOf(timeline, first));
}

function summaryOf(timeline, first) {
  const parts = [`Request of ${timeline.prompt_tokens} prompt tokens`, `plan ${timeline.plan}`];
  if (first !== undefined) parts.push(`first token after ${seconds(first)}`);
  return `${parts.join(", ")}. The table below has all times.`;
}

function showAttempt(fall, attempt) {
  for (const prefill of attempt.prefills) showPrefill(fall, prefill);
  const { decode } = attempt;
  const times = decode.worker_times;
  fall.group(`${decode.worker} · ${decode.dc}`);
  if (!times) {
    fall.bar("call", decode.sent_s, attempt.first_token_s ?? attempt.ended_s ?? fall.span, "queue", attempt.error ?? "");
    return;
  }
  fall.bar("reserve pages", decode.sent_s, times.admitted_s, "queue");
  showLayers(fall, attempt.prefills.at(-1)?.worker_times, times);
  if (times.layers_landed.length) fall.bar("wait for layer 0", times.admitted_s, times.gate_opened_s, "queue");
  fall.bar("tail", times.gate_opened_s, times.tail_computed_s, "compute", `${count(times.computed_tokens)} tokens`);
  if (attempt.rescued_s !== null) fall.ticks("late: computes the rest", [attempt.rescued_s]);
}

function showPrefill(fall, prefill) {
  fall.group(`${prefill.worker} · ${prefill.dc}`);
  const times = prefill.worker_times;
  if (!times) {
    fall.bar("call", prefill.sent_s, prefill.ended_s ?? fall.span, "queue", prefill.error ?? "");
    return;
  }
  fall.bar("others' same prefix", prefill.sent_s, times.turn_s, "queue");
  fall.bar("reserve pages", times.turn_s, times.reserved_s, "queue");
  fall.bar("reuse what exists", times.reserved_s, times.ready_s, "queue", prefill.reused_blocks ? `${count(prefill.reused_blocks)} blocks` : "");
  fall.bar(times.is_launched ? "compute (launched)" : "compute", times.ready_s, times.computed_s, "compute", `${count(prefill.computed_tokens)} tokens`);
  fall.bar("store the rest", times.computed_s, times.stored_s, "wire");
}

/** One line a layer: above when it was computed, below its entries' way to decode and its gate. */
function showLayers(fall, made, used) {
  const computed = made?.layers_computed ?? [];
  const sent = made?.layers_sent ?? [];
  const landed = used.layers_landed;
  const numLayers = Math.max(computed.length, landed.length);
  if (!numLayers) return;
  fall.group(`layers to decode${used.fetched_bytes ? ` · ${bytes(used.fetched_bytes)}` : ""}`);
  let gate = 0;
  for (let layer = 0; layer < numLayers; layer += 1) {
    const line = fall.layer(`layer ${layer}`);
    const [c, s, l] = [computed[layer], sent[layer], landed[layer]];
    if (c) {
      const before = computed[layer - 1] ?? [made.ready_s, null];
      line.bar(c[0], c[1], "compute-soft");
      line.bar(before[0], c[0], "compute", `layer ${layer}: first chunk computed ${seconds(before[0])} to ${seconds(c[0])}`);
      if (c[1] > c[0] && before[1] !== null) line.bar(Math.max(before[1], c[0]), c[1], "compute", `layer ${layer}: last chunk computed by ${seconds(c[1])}`);
    }
    if (l) {
      // What a layer lands with came from its last chunk, computed here or found in a cache.
      const from = Math.min(l[0], c?.[0] ?? s?.[0] ?? used.admitted_s);
      const isWhole = !c || c[0] === c[1] || c[1] >= l[1];
      if (!isWhole) {
        line.bar(l[0], c[1], "wire-soft low");
        line.bar(from, l[0], "wire low", `layer ${layer}: the first entry landed at ${seconds(l[0])}`);
      }
      const last = isWhole ? from : Math.max(from, c[1]);
      line.bar(last, l[1], "wire low", `layer ${layer}: the last entry on its way ${seconds(last)} to ${seconds(l[1])}`);
      gate = Math.max(gate, l[1]);
      if (gate > l[1]) line.bar(l[1], gate, "gate-soft low", `layer ${layer}: landed, waits for an earlier layer`);
      line.tick(gate, `gate of layer ${layer} opens at ${seconds(gate)}`);
    }
  }
}

function showTokens(fall, choice, timeline) {
  const { times_s: times, counts, count: total } = choice.tokens;
  fall.ticks(`${count(total)} tokens`, times, (i) => `token ${counts[i]} at ${seconds(times[i])}`);
  if (timeline.ended_s !== null && times.length) fall.bar("close", times.at(-1), timeline.ended_s, "queue");
}

/** Lines of labels and tracks over `[0, span]` seconds. */
class Fall {
  constructor(span) {
    this.span = span;
    this.parts = [];
  }

  at(seconds_) {
    return `${Math.min(100, Math.max(0, (seconds_ / this.span) * 100)).toFixed(3)}%`;
  }

  piece(from, to, look, text, title) {
    if (from === null || to === null || from === undefined || to === undefined || from >= this.span) return null;
    const end = Math.min(this.span, Math.max(from, to));
    const place = (end - from) / this.span > 0.3 ? "inside" : end / this.span > 0.72 ? "before" : null;
    return h("div", { class: `bar ${look}`, title, style: { left: this.at(from), width: `${((end - from) / this.span * 100).toFixed(3)}%` } },
      text ? h("b", { class: place }, text) : null);
  }

  line(label, look, pieces) {
    this.parts.push(h("div", { class: `label ${look}`, title: label }, label), h("div", { class: `track ${look}` }, pieces));
  }

  group(label) {
    this.line(label, "group", []);
  }

  bar(label, from, to, look, note = "") {
    if (from === null || to === null || from === undefined || to === undefined || from >= this.span) return;
    const text = [seconds(to - from), note].filter(Boolean).join(" · ");
    this.line(label, "", [this.piece(from, to, look, text, `${label}: ${seconds(from)} to ${seconds(to)}`)]);
  }

  ticks(label, times, title = (i) => seconds(times[i])) {
    this.line(label, "", times.filter((at) => at <= this.span).map((at, i) => h("div", { class: "tick", title: title(i), style: { left: this.at(at) } })));
  }

  layer(label) {
    const track = h("div", { class: "track layer" });
    this.parts.push(h("div", { class: "label layer" }, label), track);
    return {
      bar: (from, to, look, title) => { const piece = this.piece(from, to, look, "", title); if (piece) track.append(piece); },
      tick: (at, title) => { if (at <= this.span) track.append(h("div", { class: "tick", title, style: { left: this.at(at) } })); },
    };
  }

  element(first, forecast, summary) {
    const steps = 5;
    const axis = Array.from({ length: steps + 1 }, (_, i) => h("span", { style: { left: `${(i / steps) * 100}%` } }, i ? seconds((this.span * i) / steps) : "0"));
    const rules = h("div", { class: "rules" });
    for (const [at, look] of [[first, "rule"], [forecast, "rule forecast"]]) {
      if (at !== null && at !== undefined && at <= this.span) rules.append(h("div", { class: look, style: { left: this.at(at) } }));
    }
    const fall = h("div", { class: "fall", role: "img", "aria-label": summary }, h("div", { class: "label axis" }), h("div", { class: "track axis" }, axis), this.parts);
    // Explicit rows, so that the rules can lie over all of them.
    [...fall.children].forEach((child, i) => { child.style.gridRow = `${Math.floor(i / 2) + 1}`; child.style.gridColumn = `${(i % 2) + 1}`; });
    rules.style.gridRow = `1 / span ${fall.children.length / 2}`;
    fall.append(rules);
    return fall;
  }
}
