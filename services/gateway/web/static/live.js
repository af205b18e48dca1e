// The live state: one stream, and whether it is as fresh as it should be.

const STALE_MS = 3000;

/** Call `onState` with each state, and `onConnection` with "live", "stale" or "lost" when that changes. */
export function listen(onState, onConnection) {
  let heardAt = 0;
  let told = "";
  const tell = (state) => { if (state !== told) onConnection(told = state); };
  const source = new EventSource("/v1/live");
  source.addEventListener("state", (event) => {
    heardAt = performance.now();
    onState(JSON.parse(event.data));
    tell("live");
  });
  source.addEventListener("error", () => tell("lost"));
  setInterval(() => {
    if (told === "live" && performance.now() - heardAt > STALE_MS) tell("stale");
    if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(() => location.reload(), STALE_MS); }
  }, 1000);
}
