// The controller's view: what is observed, what is believed, how many workers are wanted.

import { byId, facts, h, table } from "./dom.js";
import { count, kind, percent, rounded, seconds } from "./format.js";

let shown = "";

export function showPlan(plan) {
  const key = JSON.stringify({ ...plan, age_s: 0 });
  if (!plan || key === shown) return;
  shown = key;
  const { observed, believed } = plan;
  const prompt = observed.prompt_tokens;
  byId("plan").replaceChildren(h("div", { class: "cols" },
    h("div", {}, h("h3", {}, "Observed here"), h("dl", { class: "facts" }, facts([
      ["requests", count(observed.num_requests)],
      ["rate", `${rounded(observed.requests_per_s)} /s`],
      ["prompt", prompt ? `${count(prompt.p50)} tokens, 90 % below ${count(prompt.p90)}` : "–"],
      ["answer", observed.output_tokens ? `${count(observed.output_tokens.mean)} tokens` : "–"],
      ["plans", Object.entries(observed.plans).filter(([, number]) => number).map(([name, number]) => `${kind(name)} ${count(number)}`).join(", ") || "–"],
    ]))),
    h("div", {}, h("h3", {}, "Believed"), h("dl", { class: "facts" }, facts([
      ...Object.entries(believed.offload_threshold_tokens).map(([dc, tokens]) =>
        [`worth handing to ${dc}`, tokens === null ? "never" : `from ${count(tokens)} tokens`]),
      ["links", believed.mode === "bandwidth_scarce" ? "scarce" : "abundant"],
      ["bound by", believed.bound_by ?? "–"],
      ...Object.entries(believed.stage_utilisation).map(([stage, share]) => [`${stage} in use`, percent(share)]),
    ]))),
    h("div", {}, h("h3", {}, "Workers"), plan.desired.length
      ? table("Workers that run and that are wanted", [
          ["role", (row) => row.role], ["datacenter", (row) => row.dc],
          ["now", (row) => count(row.present), true], ["wanted", (row) => count(row.replicas), true],
        ], plan.desired)
      : h("p", { class: "muted" }, "Nothing is wanted yet.")),
    plan.reasons.length ? h("div", {}, h("h3", {}, "Why"), h("ul", { class: "plain" }, plan.reasons.map((reason) => h("li", {}, reason)))) : null,
  ));
}
