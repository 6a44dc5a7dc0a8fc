// Elements without markup: whatever comes from outside becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Find an element of the page by its id. */
export function at(id) {
  return document.getElementById(id);
}

/** Make an element: attributes, listeners (onclick, ...) and children, of which strings are text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Make a button that does something. */
export function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

/** Offer choices in a select, and keep what was chosen if it is still there. */
export function offer(select, groups) {
  const chosen = select.value;
  select.replaceChildren(
    ...groups.map(([label, names]) =>
      make("optgroup", { label }, ...names.map((name) => make("option", { value: name }, name))),
    ),
  );
  const names = groups.flatMap(([, all]) => all);
  select.value = names.includes(chosen) ? chosen : "";
  return select.value !== "";
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
