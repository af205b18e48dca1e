// The page at /docs: what /openapi.json says, section by section.

import { byId, h, table } from "./dom.js";

let schemas = {};

const nameOf = (ref) => ref.split("/").pop();

/** Return what a value may be, in words. */
function kindOf(schema) {
  if (schema === undefined || schema === true) return "anything";
  if (schema.$ref) return nameOf(schema.$ref);
  const ways = schema.anyOf ?? schema.oneOf;
  if (ways) return [...new Set(ways.filter((way) => way.type !== "null").map(kindOf))].join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `object of ${kindOf(schema.additionalProperties)}`;
  return (schema.type ?? "anything") + bounds(schema);
}

function bounds(schema) {
  const { minimum: least, exclusiveMinimum: above, maximum: most } = schema;
  const from = above !== undefined ? ` above ${above}` : least !== undefined ? ` from ${least}` : "";
  const isBounded = most !== undefined && most < 2 ** 31 - 1;  // what is not, has the bound of a number on the wire
  return from + (isBounded ? ` to ${most}` : "");
}

/** Return objects that a schema is made of, each once, the schema itself first. */
function parts(ref, found = new Set()) {
  if (!ref || found.has(ref)) return found;
  found.add(ref);
  JSON.stringify(schemas[ref], (key, value) => {
    if (key === "$ref") parts(nameOf(value), found);
    return value;
  });
  return found;
}

function fields(name, where) {
  const { properties = {}, required = [], description, enum: values } = schemas[name];
  const rows = Object.entries(properties);
  const field = ([key, schema]) => h("span", {
    class: schema.deprecated ? "refused" : required.includes(key) ? "needed" : null,
  }, key);
  if (!rows.length) return h("p", {}, h("code", {}, name), ": ", description ?? (values ?? []).join(", "));
  rows.sort(([, a], [, b]) => Boolean(a.deprecated) - Boolean(b.deprecated));
  return table(`Fields of ${name}, ${where}`, [
    ["field", field],
    ["type", ([, schema]) => kindOf(schema)],
    ["meaning", ([, schema]) => schema.description ?? ""],
  ], rows);
}

function objects(title, schema, where) {
  if (!schema?.$ref) return [];
  const [first, ...others] = parts(nameOf(schema.$ref));
  return [h("div", {},
    h("h3", {}, title),
    fields(first, where),
    others.length ? h("details", {}, h("summary", {}, `Objects in it: ${others.join(", ")}`),
      others.map((name) => h("div", {}, h("h4", {}, name), fields(name, where)))) : null)];
}

function parameters(list, where) {
  if (!list?.length) return [];
  return [h("div", {}, h("h3", {}, "Parameters"), table(`Parameters of ${where}`, [
    ["name", (parameter) => parameter.name],
    ["in", (parameter) => `${parameter.in}, ${kindOf(parameter.schema)}`],
    ["meaning", (parameter) => parameter.description ?? ""],
  ], list))];
}

function responses(all, shared, where) {
  return h("div", {}, h("h3", {}, "Statuses"), table(`Statuses of ${where}`, [
    ["status", ([status]) => status],
    ["body", ([, answer]) => Object.keys(answer.content ?? {}).join(", ")],
    ["meaning", ([, answer]) => answer.description],
  ], Object.entries(all).map(([status, answer]) => [status, answer.$ref ? shared[nameOf(answer.$ref)] : answer])));
}

function operation(method, path, described, shared) {
  const content = described.responses["200"].content;
  const body = described.requestBody?.content["application/json"].schema;
  const where = `${method.toUpperCase()} ${path}`;
  const events = content["text/event-stream"]?.schema, answer = content["application/json"]?.schema;
  return h("details", { class: "operation", id: described.operationId },
    h("summary", {}, h("span", { class: "method" }, method.toUpperCase()), h("span", { class: "path" }, path),
      h("span", { class: "muted" }, described.summary)),
    h("div", { class: "inside" },
      ...parameters(described.parameters, where),
      ...objects("Body", body, `in the body of ${where}`),
      ...objects("Answer", answer, `in the answer of ${where}`),
      ...(events?.$ref && events.$ref !== answer?.$ref ? objects("Event of a stream", events, `in events of ${where}`) : []),
      responses(described.responses, shared, where)));
}

function section(tag, operations, shared) {
  const id = tag.toLowerCase().replaceAll(/\W+/g, "-");
  byId("tags").append(h("a", { href: `#${id}` }, tag));
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("div", { class: "head" }, h("h2", { id: `${id}-title` }, tag)),
    operations.map(([method, path, described]) => operation(method, path, described, shared)));
}

function show(document) {
  schemas = document.components.schemas;
  byId("version").textContent = document.info.version;
  const all = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, described]) => [method, path, described]));
  const ofTag = ({ name }) => all.filter(([, , described]) => described.tags.includes(name));
  byId("main").replaceChildren(...document.tags.map((tag) => section(tag.name, ofTag(tag), document.components.responses)));
  const wanted = byId(location.hash.slice(1));
  if (wanted) {
    if (wanted.tagName === "DETAILS") wanted.open = true;
    wanted.scrollIntoView();
  }
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  show(await answer.json());
} catch (error) {
  byId("status").textContent = `The description cannot be read: ${error.message}`;
}
