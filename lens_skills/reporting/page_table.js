// The table of neurons: of the associated ones with their evidence, or of all with their r.
// Only the rows in sight are in the page, so that 46,080 scroll as ten do.

const MARGIN = 12; // rows kept above and below those in sight
const PRINTED = 300; // rows on paper

/** Rows and columns of the associated neurons. */
function associatedNeurons() {
  const columns = DATA.columns.map(([key, title, help, digits, unit, interval], k) => ({
    key, title, help, digits, unit, interval,
    numeric: k > 0 && DATA.rows.some((row) => typeof valueIn(row[k], interval) === "number"),
  }));
  return {
    columns,
    size: DATA.rows.length,
    of: DATA.n_rows,
    first: "first",
    what: "rows",
    name: (row) => DATA.rows[row][0],
    value: (row, column) => valueIn(DATA.rows[row][column], columns[column].interval),
    limits: (row, column) => (columns[column].interval ? DATA.rows[row][column].slice(1) : null),
    order: null,
  };
}

function valueIn(cell, interval) {
  return interval ? cell[0] : cell;
}

/** Rows and columns of all neurons: layer, then r by metric. */
function allNeurons() {
  const title = (metric, k) => {
    const limit = EVERY.threshold[k];
    return limit === null ? `r, ${metric}` : `r, ${metric} (|r| ≥ ${number(limit, 3)})`;
  };
  const columns = [
    { key: "neuron", title: "neuron", digits: null, numeric: false },
    { key: "layer", title: "layer", digits: 0, numeric: true },
    ...EVERY.metrics.map((metric, k) => ({
      key: `r ${metric}`, short: `r, ${metric}`, title: title(metric, k), digits: 3, numeric: true,
    })),
  ];
  return {
    columns,
    size: EVERY.layer.length,
    of: EVERY.total,
    first: "strongest",
    what: "neurons",
    name: (row) => `L${EVERY.layer[row]}N${EVERY.index[row]}`,
    value: (row, column) => {
      if (!column) return `L${EVERY.layer[row]}N${EVERY.index[row]}`;
      return column === 1 ? EVERY.layer[row] : EVERY.r[column - 2][row];
    },
    limits: () => null,
    order: { column: 2, how: "size" },
  };
}

/** The table and its filters. `shown()` gives the names in the order in which they stand. */
function neuronTable(place) {
  const associated = DATA.rows.length ? associatedNeurons() : null;
  const all = EVERY ? allNeurons() : null;
  let source = associated || all;
  let order = source.order;
  let view = new Uint32Array(0); // rows that pass the filters, sorted
  let height = 0; // of a row, measured
  let printing = false;
  let drawn = ""; // which rows stand in the page

  const head = make("tr", { "aria-rowindex": "1" });
  const body = make("tbody");
  const sizes = make("colgroup");
  const table = make("table", { class: "virtual" }, sizes, make("thead", {}, head), body);
  const box = scrollBox("Neurons", table);
  box.classList.add("rows");
  const said = make("p", { role: "status", class: "soft" });
  const filters = make("form", { class: "filters", role: "search", "aria-label": "Filter the neurons",
    on: { submit: (event) => event.preventDefault(), input: refresh } });
  place.replaceChildren(filters, said, box);
  box.addEventListener("scroll", fill, { passive: true });
  window.addEventListener("resize", () => { height = 0; drawn = ""; fill(); });

  function labelled(text, control) {
    return make("label", {}, make("span", {}, text), control);
  }

  function choice(name, values, first) {
    return make("select", { name }, first === null ? null : make("option", { value: "" }, first),
      values.map(([value, text]) => make("option", { value }, text || "(none)")));
  }

  /** The controls that fit the columns: a choice where a text takes few values. */
  function build() {
    const { columns } = source;
    const numbers = columns.flatMap((column, k) => (column.numeric && column.key !== "layer" ? [[k, column]] : []));
    const signed_ = numbers.find(([, column]) => /^r\b|^r_|correlation/.test(column.key)) || numbers[0];
    const facets = columns.flatMap((column, k) => {
      if (k === 0 || column.numeric) return [];
      const values = new Set();
      for (let row = 0; row < source.size && values.size <= 12; row += 1) values.add(number(source.value(row, k)));
      return values.size > 1 && values.size <= 12 ? [[k, column, [...values].sort()]] : [];
    });
    const layer = columns.findIndex((column) => column.key === "layer");
    filters.replaceChildren(
      associated && all ? make("fieldset", { class: "which" }, make("legend", {}, "Neurons"),
        ["associated", "all"].map((which) => make("label", {},
          make("input", { type: "radio", name: "which", value: which, checked: (which === "all") === (source === all),
            on: { change: () => change(which) } }),
          which === "all" ? `all ${count(all.of)}` : `${associated.columns.some((column) => column.key === "found_by") ? "associated or predicted" : "associated"} ${count(associated.of)}`))) : "",
      labelled("text", make("input", { type: "search", name: "text", id: "filter", autocomplete: "off", spellcheck: "false",
        placeholder: "L17N635, a word" })),
      ...facets.map(([k, column, values]) => labelled(column.title,
        choice(`facet-${k}`, values.map((value) => [value, value]), "any"))),
      layer < 0 ? "" : make("span", { class: "pair" },
        labelled("layer from", make("input", { type: "number", name: "from", min: "0", step: "1" })),
        labelled("to", make("input", { type: "number", name: "to", min: "0", step: "1" }))),
      numbers.length ? make("span", { class: "pair" },
        labelled("size of", choice("which-number", numbers.map(([k, column]) => [k, column.short || column.title]), null)),
        labelled("at least", make("input", { type: "number", name: "least", min: "0", step: "any" }))) : "",
      make("button", { type: "button", on: { click: () => { filters.reset(); refresh(); } } }, "Clear"));
    if (signed_) filters.elements["which-number"].value = String(signed_[0]);
    for (const option of filters.querySelectorAll("option")) option.defaultSelected = option.selected;
    heads();
    refresh();
  }

  function change(which) {
    source = which === "all" ? all : associated;
    order = source.order;
    box.scrollTop = 0;
    build();
    filters.querySelector(`input[value=${which}]`).focus();
  }

  /** A column may be sorted by size |x| first where it has negative numbers. */
  function hasNegative(column) {
    for (let row = 0; row < source.size; row += 1) if (source.value(row, column) < 0) return true;
    return false;
  }

  function heads() {
    head.replaceChildren(...source.columns.map((column, k) => {
      const here = order && order.column === k ? order.how : null;
      const state = { size: "other", down: "descending", up: "ascending" }[here] || "none";
      const mark = { size: " |↓|", down: " ↓", up: " ↑" }[here] || "";
      return make("th", { scope: "col", "aria-sort": state, class: column.numeric ? "number" : null },
        make("button", { type: "button", on: { click: () => sortBy(k) } },
          column.title, make("span", { "aria-hidden": "true" }, mark)));
    }));
    // Fixed widths: rows that come into sight must not move the columns.
    const sample = Array.from({ length: Math.min(source.size, 200) }, (_, k) => Math.floor((k * source.size) / Math.min(source.size, 200)));
    const widths = source.columns.map((column, k) => {
      const longest = Math.max(...sample.map((row) => cellText(row, k).length), 4);
      return Math.min(Math.max(longest + (k ? 2 : 4), Math.min(column.title.length + 4, 18)), k ? 34 : 18);
    });
    sizes.replaceChildren(...widths.map((width) => make("col", { style: { width: `${width}ch` } })));
    table.style.minWidth = `${widths.reduce((sum, width) => sum + width, 0)}ch`;
    table.setAttribute("aria-colcount", source.columns.length);
  }

  function sortBy(column) {
    const numeric = source.columns[column].numeric;
    const cycle = !numeric ? ["up", "down"] : hasNegative(column) ? ["size", "down", "up"] : ["down", "up"];
    const next = order && order.column === column ? cycle.indexOf(order.how) + 1 : 0;
    order = { column, how: cycle[next % cycle.length] };
    heads();
    refresh();
    head.children[column].querySelector("button").focus();
  }

  /** Whether a row passes the filters, from what stands in them. */
  function test() {
    const field = (name) => (filters.elements[name] ? filters.elements[name].value : "");
    const words = field("text").toLowerCase().split(/\s+/).filter(Boolean);
    const texts = source.columns.flatMap((column, k) => (k && !column.numeric ? [k] : []));
    const chosen = [...filters.querySelectorAll("select[name^=facet-]")]
      .filter((select) => select.selectedIndex > 0).map((select) => [Number(select.name.slice(6)), select.value]);
    const layer = source.columns.findIndex((column) => column.key === "layer");
    const from = field("from") === "" ? -Infinity : Number(field("from"));
    const to = field("to") === "" ? Infinity : Number(field("to"));
    const least = field("least") === "" ? null : Number(field("least"));
    const measured = Number(field("which-number"));
    return (row) => {
      if (layer >= 0) {
        const here = source.value(row, layer);
        if (here < from || here > to) return false;
      }
      if (least !== null) {
        const here = source.value(row, measured);
        if (here === null || !(Math.abs(here) >= least)) return false;
      }
      if (chosen.some(([column, value]) => number(source.value(row, column)) !== value)) return false;
      if (!words.length) return true;
      const text = [source.name(row), ...texts.map((k) => number(source.value(row, k)))].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    };
  }

  function refresh() {
    const passes = test();
    const kept = [];
    for (let row = 0; row < source.size; row += 1) if (passes(row)) kept.push(row);
    if (order) sort(kept);
    view = Uint32Array.from(kept);
    const more = source.of > source.size ? ` The report holds the ${source.first} ${count(source.size)} of ${count(source.of)} ${source.what}.` : "";
    said.textContent = (kept.length ? `${count(kept.length)} of ${count(source.size)} rows.` : "No neuron passes these filters.") + more
      + (source === all ? " In the heads: the family-wise 5 % threshold of |r|." : "");
    table.setAttribute("aria-rowcount", kept.length + 1);
    drawn = "";
    fill();
  }

  /** By the order's column; what was not measured comes last, ties stay as they were. */
  function sort(rows) {
    const { column, how } = order;
    const direction = how === "up" ? 1 : -1;
    if (!source.columns[column].numeric) {
      const texts = new Intl.Collator("en", { numeric: true });
      const keys = new Map(rows.map((row) => [row, number(source.value(row, column))]));
      rows.sort((a, b) => direction * texts.compare(keys.get(a), keys.get(b)) || a - b);
      return;
    }
    const keys = new Float64Array(source.size);
    for (const row of rows) {
      const value = source.value(row, column);
      keys[row] = typeof value !== "number" ? NaN : how === "size" ? Math.abs(value) : value;
    }
    rows.sort((a, b) => Number.isNaN(keys[a]) - Number.isNaN(keys[b]) || direction * (keys[a] - keys[b]) || a - b);
  }

  function cellText(row, k) {
    if (!k) return source.name(row);
    const { digits } = source.columns[k];
    const limits = source.limits(row, k);
    const text = number(source.value(row, k), digits);
    return limits && limits[0] !== null ? `${text} [${number(limits[0], digits)}, ${number(limits[1], digits)}]` : text;
  }

  function line(place_) {
    const row = view[place_];
    const name = source.name(row);
    return make("tr", { "aria-rowindex": place_ + 2, class: PAGE_OF.has(name) ? "paged" : null },
      source.columns.map((column, k) => {
        if (!k) return make("th", { scope: "row" }, make("a", { href: linkOf(name) }, name));
        return make("td", { class: column.numeric ? "number" : null }, cellText(row, k));
      }));
  }

  /** The rows in sight, with empty ones as high as those that are not. */
  function fill() {
    if (!height && view.length) {
      body.replaceChildren(line(0));
      height = body.firstChild.getBoundingClientRect().height || 0;
    }
    const step = height || 28;
    let first = Math.max(0, Math.floor(box.scrollTop / step) - MARGIN);
    const tall = Math.max(box.clientHeight, parseFloat(getComputedStyle(box).maxHeight) || 0);
    let last = Math.min(view.length, Math.ceil((box.scrollTop + tall) / step) + MARGIN);
    if (printing) [first, last] = [0, Math.min(view.length, PRINTED)];
    const now = `${first} ${last} ${printing}`;
    if (now === drawn) return;
    drawn = now;
    const gap = (rows) => (rows > 0 && !printing ? [make("tr", { "aria-hidden": "true", class: "gap" },
      make("td", { colspan: source.columns.length, style: { height: `${rows * step}px` } }))] : []);
    const held = body.contains(document.activeElement) && document.activeElement.closest("tr").getAttribute("aria-rowindex");
    const lines = [];
    for (let k = first; k < last; k += 1) lines.push(line(k));
    const rest = printing && last < view.length ? [make("tr", {}, make("td", { colspan: source.columns.length },
      `… and ${count(view.length - last)} more`))] : [];
    body.replaceChildren(...gap(first), ...lines, ...gap(view.length - last), ...rest);
    if (held) body.querySelector(`tr[aria-rowindex="${held}"] a`)?.focus({ preventScroll: true });
  }

  function print(on) {
    printing = on;
    fill();
  }

  build();
  return {
    print,
    focus: () => { filters.elements.text.focus(); filters.elements.text.select(); },
    shown: () => Array.from(view, (row) => source.name(row)),
    // Hidden when it was filled, it could not measure its rows.
    seen: () => { height = 0; drawn = ""; fill(); },
  };
}
