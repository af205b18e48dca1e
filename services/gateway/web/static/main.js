// Wires the page's sections to the live state. The chosen request is in the address: `#request=ID`.

import { startAccess } from "./access.js";
import { showCluster } from "./cluster.js";
import { byId } from "./dom.js";
import { listen } from "./live.js";
import { showPlan } from "./plan.js";
import { startPlayground } from "./playground.js";
import { showChosen, startRequests, takeRequests } from "./requests.js";
import { closeTimeline, openTimeline, startTimeline, takeChanges } from "./timeline.js";

const CONNECTION = { live: ["live", "good"], stale: ["silent", "bad"], lost: ["disconnected", "bad"] };

const choose = (id) => { location.hash = `request=${encodeURIComponent(id)}`; };

function follow() {
  const [, id] = /^#request=(.+)$/.exec(location.hash) ?? [];
  if (id) {
    showChosen(decodeURIComponent(id));
    openTimeline(decodeURIComponent(id));
  } else if (location.hash === "#requests") {
    showChosen(null);
    closeTimeline();
  }
}

startAccess();
startPlayground(choose);
startTimeline(() => { location.hash = "requests"; });
await startRequests(choose);
addEventListener("hashchange", follow);
follow();
listen(
  (state) => {
    byId("model").textContent = state.model;
    showCluster(state);
    takeRequests(state.requests, state.at);
    takeChanges(state.requests.changed);
    showPlan(state.plan);
  },
  (connection) => {
    const [text, look] = CONNECTION[connection];
    byId("connection").textContent = text;
    byId("connection").className = `pill ${look}`;
    document.body.classList.toggle("stale", connection !== "live");
  },
);
