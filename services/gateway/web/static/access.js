// The API key that a gateway may ask for: kept for as long as the tab is open, sent with each request.

import { byId } from "./dom.js";

const STORED = "prfaas-key";

/** Fetch a path of this gateway. A refusal for want of a key shows the field for one. */
export async function request(path, options = {}) {
  const key = sessionStorage.getItem(STORED);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 || response.status === 403) showForm(response.status === 403 || Boolean(key));
  return response;
}

export function startAccess() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(STORED, byId("key").value.trim());
    location.reload();
  });
}

function showForm(wasRefused) {
  const form = byId("key-form");
  if (!form.hidden) return;
  form.hidden = false;
  byId("key-status").textContent = wasRefused ? "This key may not see what the page shows." : "This gateway asks for an API key.";
}
