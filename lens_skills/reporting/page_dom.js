// Elements, numbers, and the data of the page. Texts from the data only ever become text nodes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes: `on` holds listeners, `style` properties; null leaves one out. */
function make(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
function draw(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A value as `_cell` of html_page.py writes it. */
function number(value, digits = null) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (typeof value === "string") return value;
  let text;
  if (digits !== null) text = value.toFixed(digits);
  else if (Number.isInteger(value)) text = String(value);
  else text = String(Number(value.toPrecision(4)));
  // A p that is not 0 is not written as 0; of others as many decimals are enough.
  if (Number(text) === 0 && value > 0 && digits >= 4) return `<${(10 ** -digits).toFixed(digits)}`;
  if (Number(text) === 0) text = text.replace("-", "");
  return text.replace("-", "−");
}

/** A number with its sign. */
function signed(value, digits = null) {
  const text = number(value, digits);
  return value > 0 ? `+${text}` : text;
}

function count(n) {
  return n.toLocaleString("en-US");
}

/** A token with its spaces and line breaks visible. */
function visible(token) {
  if (token === "") return "∅";
  return token.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** A box of its own for what may be wider than the page; reached by the keyboard, too. */
function scrollBox(label, ...children) {
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, children);
}

/** A list of facts, of rows [name, value, code]. */
function factList(facts) {
  return make("dl", { class: "facts" }, facts.map((fact) => make("div", {},
    make("dt", {}, fact.name),
    make("dd", {}, fact.code ? make("code", {}, fact.value) : fact.value))));
}

/** A table from rows, the first of which are the names of its columns. */
function plainTable(rows, label) {
  const kinds = rows[0].map((_, k) => (rows.slice(1).some((row) => typeof row[k] === "number") ? "number" : null));
  return scrollBox(label, make("table", {},
    make("thead", {}, make("tr", {}, rows[0].map((head, k) => make("th", { scope: "col", class: kinds[k] }, number(head))))),
    make("tbody", {}, rows.slice(1).map((row) => make("tr", {}, row.map((value, k) => make("td", { class: kinds[k] }, number(value))))))));
}

/** The deep link of a neuron's page. */
function linkOf(name) {
  return `#neuron-${encodeURIComponent(name)}`;
}

function unpacked(text, kind) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let k = 0; k < bytes.length; k += 1) bytes[k] = characters.charCodeAt(k);
  return new kind(bytes.buffer);
}

const EVERY = DATA.every && everyNeuron(DATA.every);

function everyNeuron({ total, wide, held, layer, index, metrics, r, threshold }) {
  const values = r.map((text) => Float32Array.from(unpacked(text, Int16Array), (steps) => (steps === -32768 ? NaN : steps / 10000)));
  const places = wide && placesOf(values[0].length, held && unpacked(held, Uint8Array));
  return {
    total, metrics, threshold, r: values,
    layer: wide ? Uint16Array.from(places, (place) => Math.floor(place / wide)) : unpacked(layer, Uint16Array),
    index: wide ? places.map((place) => place % wide) : unpacked(index, Uint32Array),
  };
}

/** The places of n neurons among all: one after another, or those whose bit is set. */
function placesOf(n, bits) {
  if (!bits) return Uint32Array.from({ length: n }, (_, k) => k);
  const places = new Uint32Array(n);
  for (let place = 0, k = 0; k < n; place += 1) if (bits[place >> 3] & (128 >> (place & 7))) places[k++] = place;
  return places;
}

// Names come from outside, so they are keys of maps and never of objects.
const PAGE_OF = new Map(DATA.neurons.map((page, k) => [page.name, k]));
const ROWS_OF = new Map();
DATA.rows.forEach((row, k) => {
  if (!ROWS_OF.has(row[0])) ROWS_OF.set(row[0], []);
  ROWS_OF.get(row[0]).push(k);
});
const CIRCUIT_OF = new Map(DATA.circuits.map((circuit, k) => [circuit.anchor, k]));

/** Nice round numbers that span low to high, at most about `n` of them. */
function ticks(low, high, n = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k += 1) found.push(Number((k * step).toPrecision(6)));
  return found;
}

/** A word on what the pointer or the focus is on: one for the page, near its element. */
const hint = make("div", { id: "hint", role: "status", hidden: true });

function showHint(near, text) {
  hint.textContent = text;
  hint.hidden = false;
  const box = near.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - hint.offsetWidth - 8));
  const above = box.top - hint.offsetHeight - 6;
  hint.style.left = `${left + window.scrollX}px`;
  hint.style.top = `${(above > 0 ? above : box.bottom + 6) + window.scrollY}px`;
}

function hideHint() {
  hint.hidden = true;
}
