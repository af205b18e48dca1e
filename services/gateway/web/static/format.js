// Numbers as people read them; what is not known is a dash.

export const DASH = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function seconds(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  if (size < 0.0995) return `${(value * 1000).toFixed(size < 0.00995 ? 1 : 0)} ms`;
  if (size < 9.95) return `${value.toFixed(2)} s`;
  return size < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

function scaled(value, units, step) {
  let unit = 0;
  while (Math.abs(value) >= step * 0.9995 && unit < units.length - 1) { value /= step; unit += 1; }
  return `${value.toFixed(unit && Math.abs(value) < 9.95 ? 1 : 0)} ${units[unit]}`;
}

export const bytes = (value) => (known(value) ? scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000) : DASH);
export const perSecond = (value) => (known(value) ? `${bytes(value)}/s` : DASH);
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : DASH);
export const percent = (value) => (known(value) ? `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %` : DASH);
export const rounded = (value, digits = 2) => (known(value) ? value.toFixed(digits) : DASH);

export function age(secondsAgo) {
  if (!known(secondsAgo)) return DASH;
  if (secondsAgo < 60) return `${Math.max(0, Math.floor(secondsAgo))} s`;
  return secondsAgo < 3600 ? `${Math.floor(secondsAgo / 60)} min` : `${Math.floor(secondsAgo / 3600)} h`;
}

export const KINDS = {
  remote: "prefill elsewhere", local: "prefill at home", decode_only: "decode alone", none: "no prefill",
};
export const kind = (name) => KINDS[name] ?? name ?? DASH;
