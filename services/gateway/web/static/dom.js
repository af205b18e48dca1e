// Elements from data. Text always goes in as text: nothing that a client or a worker says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; attributes that are null or false are left out, `style` is an object, `on*` are listeners. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Return a table; columns are `[title, cell of a row, is a number]`, the first cell of a row is its header. */
export function table(caption, columns, rows) {
  const kind = (isNumber) => ({ class: isNumber ? "num" : null });
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, h("table", {},
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, columns.map(([title, , isNumber]) => h("th", { scope: "col", ...kind(isNumber) }, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([, cell, isNumber], i) =>
      h("td", kind(isNumber), cell(row)))))),
  ));
}

export function facts(pairs) {
  return pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
}
