// The live state: one stream, and whether it is as fresh as it should be.

import { request } from "./access.js";
import { events } from "./sse.js";

const STALE_MS = 3000;
const AGAIN_MS = 1000;

/** Call `onState` with each state, and `onConnection` with "live", "stale" or "lost" when that changes. */
export function listen(onState, onConnection) {
  let heardAt = 0;
  let told = "";
  const tell = (state) => { if (state !== told) onConnection(told = state); };

  async function follow() {
    const response = await request("/v1/live");
    if (!response.ok) return;
    for await (const data of events(response.body)) {
      heardAt = performance.now();
      onState(JSON.parse(data));
      tell("live");
    }
  }

  async function forever() {
    for (;;) {
      try { await follow(); } catch (error) { console.debug("the live state broke off:", error); }
      tell("lost");
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  forever();
  setInterval(() => {
    if (told === "live" && performance.now() - heardAt > STALE_MS) tell("stale");
  }, 1000);
}
