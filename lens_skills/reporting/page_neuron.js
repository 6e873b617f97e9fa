// The page of a neuron: evidence, controls, examples, what it writes, and the company it keeps.

/** The page of a neuron by its name, also of one that has none: what is known of it. */
function neuronPage(name, sequence) {
  const page = PAGE_OF.has(name) ? DATA.neurons[PAGE_OF.get(name)] : null;
  const parts = page ? fullPage(page) : shortPage(name);
  const title = make("h2", { tabindex: "-1" }, name, page && page.grade ? make("span", { class: "grade" }, `grade ${page.grade}`) : null);
  return [stepping(name, sequence), title, ...parts];
}

/** Links to the neurons before and after it in the table, and back to it. */
function stepping(name, sequence) {
  const place = sequence.indexOf(name);
  const link = (other, text, rel) => (other === undefined ? null : make("a", { href: linkOf(other), rel }, text));
  return make("nav", { class: "stepping", "aria-label": "Neurons" },
    make("a", { href: "#neurons" }, "All neurons"),
    place < 0 ? null : link(sequence[place - 1], `← ${sequence[place - 1]}`, "prev"),
    place < 0 ? null : link(sequence[place + 1], `${sequence[place + 1]} →`, "next"),
    place < 0 ? null : make("span", { class: "soft" }, `${count(place + 1)} of ${count(sequence.length)}`));
}

function section(title, ...content) {
  return make("section", {}, make("h3", {}, title), content);
}

/** Of a neuron without a page: its rows in the table and its r. */
function shortPage(name) {
  const rows = ROWS_OF.get(name) || [];
  const place = /^L(\d+)N(\d+)$/.exec(name);
  let here = -1;
  if (EVERY && place) here = EVERY.layer.findIndex((layer, k) => layer === Number(place[1]) && EVERY.index[k] === Number(place[2]));
  if (!rows.length && here < 0) {
    return [make("p", { class: "lead" }, `No neuron ${name} stands in this report.`)];
  }
  const correlations = here < 0 ? null : section("Correlation", scrollBox("Correlation by metric", make("table", {},
    make("thead", {}, make("tr", {}, ["metric", "r", "5 % family-wise threshold of |r|"].map((head, k) => make("th", { scope: "col", class: k ? "number" : null }, head)))),
    make("tbody", {}, EVERY.metrics.map((metric, k) => make("tr", {}, make("th", { scope: "row" }, metric),
      make("td", { class: "number" }, number(EVERY.r[k][here], 3)),
      make("td", { class: "number" }, number(EVERY.threshold[k], 3))))))));
  return [
    make("p", { class: "lead" }, "No page was made for this neuron; this is what is known of it."),
    ...rows.map((row, k) => section("Evidence", evidence(DATA.rows[row], k))),
    correlations,
  ];
}

function fullPage(page) {
  const graphs = page.circuits.filter((anchor) => CIRCUIT_OF.has(anchor)).map((anchor) => {
    const circuit = DATA.circuits[CIRCUIT_OF.get(anchor)];
    return section(`Circuit: ${circuit.title}`, make("p", {}, make("a", { href: `#${encodeURIComponent(anchor)}` }, "In the summary"), `. ${circuit.sign}`),
      circuitGraph(circuit, page.name));
  });
  // Under several metrics a neuron has several rows; the page's own comes first.
  const others = (ROWS_OF.get(page.name) || []).map((row) => DATA.rows[row])
    .filter((cells) => JSON.stringify(cells) !== JSON.stringify(page.cells));
  return [
    make("p", { class: "lead" }, page.summary),
    page.caveats.length ? make("ul", { class: "caveats" }, page.caveats.map((caveat) => make("li", {}, caveat))) : null,
    page.verdict || page.controls ? section("Verdict, beside its controls",
      page.verdict ? make("p", {}, page.verdict) : null,
      page.controls ? controlStrip(page.controls) : null) : null,
    page.quantiles.length ? section("Examples by activation", examples(page.quantiles)) : null,
    section("Evidence", evidence(page.cells), ...others.map((cells, k) => evidence(cells, k + 1)), page.facts.length ? factList(page.facts) : null,
      make("details", { class: "help" }, make("summary", {}, "What these numbers are"), columnHelp())),
    ...page.written.map((written) => section(`What it writes: ${written.lens}`, make("p", {}, written.how), writtenTokens(written))),
    page.explanation.length || page.features.length > 1 ? section("Explanation",
      ...page.explanation.map((sentence) => make("p", {}, sentence)),
      page.features.length > 1 ? plainTable(page.features, "Features that explain it") : null) : null,
    page.correlated.length ? section("Neurons that go with it", correlated(page.correlated)) : null,
    page.cluster.length ? section("Cluster", make("p", { class: "names" }, page.cluster.map((name) => neuronLink(name)))) : null,
    page.diagnostics.length ? section("Diagnostics", factList(page.diagnostics)) : null,
    ...graphs,
  ];
}

/** A neuron's name, linked where the report holds something of it; other texts stay texts. */
function neuronLink(name) {
  const known = PAGE_OF.has(name) || ROWS_OF.has(name) || (EVERY && /^L\d+N\d+$/.test(name));
  return known ? make("a", { href: linkOf(name) }, name) : make("span", {}, name);
}

// Evidence: one line per column, with a bar where there is an interval.

function columnHelp() {
  return factList(DATA.columns.slice(1).map(([, title, help, , unit]) => ({ name: title, value: unit ? `${help} Unit: ${unit}.` : help })));
}

let spans = null;

/** From where to where the intervals of a column go, over all rows, with 0 among them. */
function spanOf(column) {
  if (!spans) spans = new Map();
  if (!spans.has(column)) {
    // A correlation goes from -1 to 1 whatever was found.
    const fixed = /^r(_|$)/.test(DATA.columns[column][0]);
    let [low, high] = fixed ? [-1, 1] : [0, 0];
    for (const cells of [...DATA.rows, ...DATA.neurons.map((page) => page.cells)]) {
      for (const value of cells[column]) {
        if (typeof value === "number") [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
    spans.set(column, [low, high]);
  }
  return spans.get(column);
}

function evidence(cells, k = 0) {
  const lines = DATA.columns.flatMap(([, title, , digits, unit, interval], column) => {
    const value = valueIn(cells[column], interval);
    if (!column || value === null || value === "") return [];
    const limits = interval && cells[column][1] !== null && typeof value === "number" ? cells[column].slice(1) : null;
    const text = number(value, digits) + (limits ? ` [${number(limits[0], digits)}, ${number(limits[1], digits)}]` : "") + (unit ? ` ${unit}` : "");
    return [make("tr", {}, make("th", { scope: "row" }, title),
      make("td", { class: typeof value === "number" ? "number" : null }, text),
      make("td", {}, limits ? intervalBar(value, limits, spanOf(column), digits) : null))];
  });
  const box = scrollBox(k ? `Evidence, ${k + 1}` : "Evidence", make("table", {}, make("tbody", {}, lines)));
  box.classList.add("evidence");
  return box;
}

/** A point and its interval on the scale that all neurons share, with 0 marked. */
function intervalBar(value, [low, high], [least, most], digits) {
  const [width, height, pad] = [220, 30, 14];
  const x = (at) => pad + ((at - least) / (most - least || 1)) * (width - 2 * pad);
  const marks = [...new Set([least, 0, most])].sort((a, b) => a - b)
    .filter((at, k, all) => !k || x(at) - x(all[k - 1]) > 34 || at === 0);
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true", class: "interval" },
    draw("line", { x1: pad, x2: width - pad, y1: 18, y2: 18, class: "axis" }),
    draw("line", { x1: x(0), x2: x(0), y1: 2, y2: 18, class: "zero" }),
    draw("line", { x1: x(low), x2: x(high), y1: 9, y2: 9, class: "whisker" }),
    draw("circle", { cx: x(value), cy: 9, r: 3.5, class: "point" }),
    marks.map((at) => draw("text", { x: x(at), y: 29, "text-anchor": "middle" }, number(at, at === 0 ? 0 : Math.min(digits ?? 2, 2)))));
}

/** The controls' effects as dots, ±δ as a band, its own effect with its interval. */
function controlStrip(control) {
  const [width, height, pad, base] = [640, 92, 16, 56];
  const effects = control.effects.filter((at) => typeof at === "number");
  if (control.effect === null) return null;
  const numbers = [...effects, control.effect, control.low, control.high, -control.delta, control.delta].filter((x) => typeof x === "number");
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  // Where ±δ would be too narrow to be seen, the axis is linear within it and logarithmic beyond.
  const bent = control.delta > 0 && control.delta < 0.02 * (most - least);
  const f = bent ? (at) => Math.asinh(at / control.delta) : (at) => at;
  const x = (at) => pad + ((f(at) - f(least)) / (f(most) - f(least) || 1)) * (width - 2 * pad);
  const marks = bent ? bentTicks(control.delta, least, most) : ticks(least, most, 6);
  // Dots that would cover one another are stacked.
  const stacks = new Map();
  const dots = effects.map((at) => {
    const column = Math.round(x(at) / 5);
    const level = stacks.get(column) || 0;
    stacks.set(column, level + 1);
    return draw("circle", { cx: column * 5, cy: base - 5 - Math.min(level, 6) * 5, r: 2.2, class: "control" });
  });
  const text = `${signed(control.effect, 3)} [${number(control.low, 3)}, ${number(control.high, 3)}] ${control.unit}`;
  const range = effects.length ? `${count(effects.length)} controls from ${number(Math.min(...effects), 3)} to ${number(Math.max(...effects), 3)}` : "no controls";
  return make("figure", { class: "strip" },
    make("figcaption", {}, make("b", {}, text), control.rank ? ` · ${control.rank}` : "", ` · ${range}, ±δ = ${number(control.delta)}.`),
    scrollBox("Effects of the controls", draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": `Own effect ${text}; ${range}.` },
    draw("rect", { x: x(-control.delta), width: Math.max(1, x(control.delta) - x(-control.delta)), y: 4, height: base - 4, class: "delta" }),
    draw("line", { x1: pad, x2: width - pad, y1: base, y2: base, class: "axis" }),
    least <= 0 && most >= 0 ? draw("line", { x1: x(0), x2: x(0), y1: 4, y2: base, class: "zero" }) : null,
    marks.map((at) => [draw("line", { x1: x(at), x2: x(at), y1: base, y2: base + 4, class: "axis" }),
      draw("text", { x: x(at), y: base + 16, "text-anchor": "middle" }, number(at))]),
    dots,
    draw("line", { x1: x(control.low ?? control.effect), x2: x(control.high ?? control.effect), y1: 14, y2: 14, class: "whisker own" }),
    draw("path", { d: `M${x(control.effect)} 8l6 6l-6 6l-6 -6z`, class: "own" }),
    draw("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, `effect, ${control.unit}${bent ? "; linear within ±δ, logarithmic beyond" : ""}`))),
    make("p", { class: "soft key" }, make("span", { class: "mark own" }, "◆"), " this neuron, 95 % interval  ",
      make("span", { class: "mark control" }, "●"), " one control  ", make("span", { class: "mark delta" }, "▮"), " ±δ, negligible"));
}

function bentTicks(delta, least, most) {
  const found = [0];
  for (let power = Math.ceil(Math.log10(delta * 2)); 10 ** power <= Math.max(-least, most); power += 1) found.push(10 ** power, -(10 ** power));
  return found.filter((at) => at >= least && at <= most);
}

// Examples: tokens on one scale for the neuron, read by pointer, keyboard and finger.

function examples(quantiles) {
  let most = 0;
  for (const [, , , , rows] of quantiles) for (const [, values] of rows) for (const value of values) most = Math.max(most, Math.abs(value ?? 0));
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
  const legend = make("p", { class: "legend" }, "activation ",
    make("span", { class: "swatches" }, steps.map((part) => make("span", { class: "token", style: shade(part) },
      part === -1 || part === 1 || part === 0 ? number(part * most, most >= 100 ? 0 : 2) : " "))),
    make("span", { class: "soft" }, " Outlined: where it was read. Point at a token, tap it, or walk with the arrow keys for its value."));
  return [legend, ...quantiles.map(([name, low, high, n, rows]) => make("div", { class: "quantile" },
    make("h4", {}, name, make("span", { class: "soft" }, ` ${number(low)} to ${number(high)}, ${count(n)} example${n === 1 ? "" : "s"}`)),
    rows.map((row) => example(row, most))))];
}

function shade(part) {
  const size = Math.min(1, Math.abs(part));
  return { "--fill": part < 0 ? "var(--inactive)" : "var(--active)", "--strength": `${(100 * size).toFixed(1)}%` };
}

function example([texts, values, read, activation, group, labels], most) {
  const tokens = texts.map((text, k) => {
    const token = visible(DATA.tokens[text]);
    const value = signed(values[k] ?? null);
    return make("button", { type: "button", class: k === read ? "token read" : "token", tabindex: k ? "-1" : "0",
      style: shade((values[k] ?? 0) / (most || 1)), "aria-label": `${token}, ${value}`,
      "data-hint": `${value} · token ${k + 1} of ${texts.length}${k === read ? ", read here" : ""}` }, token);
  });
  const about = [activation === null ? null : `activation ${signed(activation)}`, ...labels, group ? `group ${group}` : null].filter(Boolean);
  return make("div", { class: "example" },
    make("div", { class: "tokens", role: "group", "aria-label": about.join(", ") || "example", on: { keydown: walkTokens } }, tokens),
    make("p", { class: "soft" }, about.join(" · ")));
}

/** The arrow keys go from token to token; one of them is in the order of Tab. */
function walkTokens(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const here = event.target.closest("button.token");
  if (!here || (!step && event.key !== "Home" && event.key !== "End")) return;
  const all = [...event.currentTarget.children];
  const next = event.key === "Home" ? all[0] : event.key === "End" ? all[all.length - 1] : all[all.indexOf(here) + step];
  event.preventDefault();
  event.stopPropagation();
  if (!next) return;
  here.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Tokens it makes more and less likely, as bars from 0 on one scale. */
function writtenTokens(written) {
  const most = Math.max(...[...written.promoted, ...written.suppressed].map(([, value]) => Math.abs(value ?? 0)), 1e-12);
  const list = (title, rows) => (rows.length ? make("table", { class: "written" },
    make("caption", {}, title),
    make("thead", { class: "unseen" }, make("tr", {}, ["token", "size", "change"].map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, rows.map(([token, value]) => make("tr", {}, make("th", { scope: "row" }, visible(token)),
      make("td", {}, draw("svg", { viewBox: "0 0 100 10", width: 100, height: 10, "aria-hidden": "true" },
        draw("rect", { x: value < 0 ? 50 - 50 * Math.abs(value) / most : 50, width: Math.max(0.5, 50 * Math.abs(value ?? 0) / most), height: 10,
          class: "bar" }),
        draw("line", { x1: 50, x2: 50, y1: 0, y2: 10, class: "zero" }))),
      make("td", { class: "number" }, signed(value, 3)))))) : null);
  return make("div", { class: "beside" }, list("more likely", written.promoted), list("less likely", written.suppressed));
}

function correlated(pairs) {
  return make("table", { class: "written" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "neuron"), make("th", { scope: "col" }, "size"), make("th", { scope: "col", class: "number" }, "r"))),
    make("tbody", {}, pairs.map(([name, r]) => make("tr", {}, make("th", { scope: "row" }, neuronLink(name)),
      make("td", {}, draw("svg", { viewBox: "-50 0 100 10", width: 100, height: 10, "aria-hidden": "true" },
        draw("rect", { x: Math.min(0, 50 * r), width: Math.abs(50 * r), height: 10, class: r < 0 ? "r-low" : "r-high" }),
        draw("line", { x1: 0, x2: 0, y1: 0, y2: 10, class: "zero" }))),
      make("td", { class: "number" }, signed(r, 3))))));
}
