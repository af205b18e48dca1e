// A request of one's own, streamed: its text, its first token's time as this browser sees it, what was cached.

import { request } from "./access.js";
import { byId, facts, h } from "./dom.js";
import { count, seconds } from "./format.js";
import { events } from "./sse.js";

const LONG_CHARS = 7000;

export function startPlayground(showTimeline) {
  const form = byId("ask-form");
  const stop = byId("stop");
  let running = null;

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    const send = form.querySelector("[type=submit]");
    send.disabled = true;
    stop.disabled = false;
    try {
      await ask(new FormData(form), running.signal, showTimeline);
    } finally {
      running = null;
      send.disabled = false;
      stop.disabled = true;
    }
  });
  stop.addEventListener("click", () => running?.abort());
  byId("long").addEventListener("click", async () => {
    const source = await (await fetch("/page/page.css")).text();
    byId("prompt").value = `Here is a style sheet.\n\n${source.slice(0, LONG_CHARS)}\n\nSay in one sentence what it styles.`;
    byId("prompt").focus();
  });
}

async function ask(form, signal, showTimeline) {
  const isChat = form.get("kind") === "chat";
  const prompt = form.get("prompt");
  const body = {
    ...(isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    max_tokens: Number(form.get("max_tokens")), temperature: Number(form.get("temperature")),
    stream: true, stream_options: { include_usage: true },
  };
  const [answer, numbers, status] = [byId("answer"), byId("facts"), byId("ask-status")];
  answer.hidden = numbers.hidden = false;
  answer.textContent = "";
  numbers.replaceChildren();
  status.textContent = "Waiting for the first token.";
  const found = { began: performance.now(), first: null, usage: null, id: null };
  const show = () => numbers.replaceChildren(...facts(factsOf(found, showTimeline)));
  try {
    const response = await request(isChat ? "/v1/chat/completions" : "/v1/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    found.id = response.headers.get("X-Request-Id");
    if (!response.ok) throw new Error((await response.json()).error.message);
    let isWhole = false;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") { isWhole = true; continue; }
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      const text = (isChat ? choice?.delta.content : choice?.text) ?? "";
      if (text && found.first === null) { found.first = performance.now(); status.textContent = ""; show(); }
      answer.append(text);
      found.usage = event.usage ?? found.usage;
    }
    status.textContent = isWhole ? "The answer is complete." : "The answer broke off.";
  } catch (error) {
    status.textContent = error.name === "AbortError" ? "Stopped." : `Failed: ${error.message}`;
  }
  found.ended = performance.now();
  show();
}

function factsOf({ began, first, ended, usage, id }, showTimeline) {
  const tokens = usage?.completion_tokens;
  const perToken = tokens > 1 && ended ? (ended - first) / 1000 / (tokens - 1) : null;
  return [
    ["first token", seconds(first === null ? null : (first - began) / 1000)],
    ["each further", seconds(perToken)],
    ["prompt", `${count(usage?.prompt_tokens)} tokens`],
    ["of it cached", count(usage?.prompt_tokens_details?.cached_tokens)],
    ["answer", `${count(tokens)} tokens`],
    ...(id ? [["timeline", h("button", { type: "button", class: "link", onclick: () => showTimeline(id) }, "show it")]] : []),
  ];
}
