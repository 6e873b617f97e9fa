// A circuit as a graph: layers from the bottom up, positions from left to right, and a table beside it.

const ROW = 72; // from one row to the next
const LANE = 116; // of one node in its column
const BOX = 24; // height of a node
const MOST = 6; // nodes side by side; more stand in lines
const LINE = 46; // from one such line to the next
const GUTTER = 84; // for the names of the rows

let graphs = 0;

/** The graph of a circuit with its controls and its table; `here` is the neuron whose page it is on. */
function circuitGraph(circuit, here = "") {
  graphs += 1;
  const units = new Map(circuit.unit);
  const nodes = circuit.nodes.map(([label, kind, layer, column, place, start, neuron]) => ({
    label, kind, layer, column, place, start, neuron, wide: Math.max(60, Math.min(label.length, 10) * 7.4 + 14),
  }));
  const edges = circuit.edges.map(([from, to, channel, target, verdict, effect, low, high, share, q]) => ({
    from, to, channel, target, verdict, effect, low, high, share, q,
  }));
  if (!edges.length) return make("p", { class: "soft" }, "No edge was tested.");
  // Effects on different targets have different units: an arrow is as wide as its part of the largest on its target.
  const largest = new Map();
  const positions = new Set(nodes.map((node) => node.column)).size;
  for (const edge of edges) largest.set(edge.target, Math.max(largest.get(edge.target) || 0, Math.abs(edge.effect ?? 0)));
  for (const edge of edges) {
    edge.size = Math.abs(edge.effect ?? 0) / (largest.get(edge.target) || 1);
    edge.unit = units.get(edge.target) || "";
    edge.name = nameOf(nodes[edge.from], nodes[edge.to], positions > 1);
    edge.interval = edge.low === null || edge.high === null ? "" : ` [${number(edge.low, 3)}, ${number(edge.high, 3)}]`;
    edge.text = `${edge.name} by ${edge.channel}: ${signed(edge.effect, 3)}${edge.interval} ${edge.unit} on ${edge.target}, ${edge.verdict || "not tested"}`;
  }
  const slider = make("input", { type: "range", min: "0", max: "100", step: "1", value: "0", on: { input: update } });
  const sliderSays = make("output", {}, "0 %");
  const only = make("input", { type: "checkbox", on: { change: lay } });
  only.checked = edges.some((edge) => edge.verdict === "confirmed");
  const said = make("p", { role: "status", class: "soft" });
  const pinSays = make("p", { class: "pinned", role: "status" });
  let pinned = null;
  let walked = 0; // the node whose edges the arrow keys go through

  let [arrows, boxes] = [[], []]; // by edge and by node; null where it is not drawn
  const picture = draw("svg", { role: "group", class: "graph",
    "aria-label": `${circuit.title}, as a graph. The table below has its edges.`, on: { keydown: walk } });

  const lines = edges.map((edge, k) => make("tr", {},
    make("th", { scope: "row" }, make("button", { type: "button", class: "edge", on: {
      focus: () => light(k, true), blur: () => light(k, false), click: () => light(k, true) } }, edge.name)),
    ...[edge.channel, edge.target].map((text) => make("td", {}, text)),
    make("td", { class: "number" }, `${signed(edge.effect, 3)}${edge.interval}`),
    make("td", {}, edge.unit), make("td", { class: "number" }, edge.share === null ? "–" : `${number(100 * edge.share, 0)} %`),
    make("td", { class: "number" }, edge.q === null ? "–" : number(Number(edge.q.toPrecision(2)))), make("td", {}, edge.verdict)));
  for (const [k, line] of lines.entries()) {
    line.addEventListener("pointerenter", () => light(k, true));
    line.addEventListener("pointerleave", () => light(k, false));
  }
  const list = make("table", { class: "edges" },
    make("thead", {}, make("tr", {}, ["edge", "channel", "acts on", "effect, 95 % interval", "unit", "share of the total", "q", "verdict"]
      .map((head, k) => make("th", { scope: "col", class: [3, 5, 6].includes(k) ? "number" : null }, head)))),
    make("tbody", {}, lines));

  lay();
  return make("div", { class: "graph-and-table" },
    make("div", { class: "filters" },
      make("label", {}, make("span", {}, "hide edges below"), slider, sliderSays, make("span", { class: "soft" }, " of the largest on the same target")),
      make("label", {}, only, " only confirmed edges")),
    scrollBox(`${circuit.title}, graph ${graphs}`, picture),
    make("p", { class: "soft key" }, sample("raises"), " raises its target (effect below 0)  ", sample("lowers"), " lowers it (dashed)  ",
      sample("raises undecided"), " not confirmed (faint). Wider: larger beside the largest on its target. Click a box to pin it; an underlined name leads to its page. With a box in focus, ← and → go through its edges."),
    pinSays, said, scrollBox(`Edges of ${circuit.title}, ${graphs}`, list));

  /** Draws the chosen edges and what they join, and nothing else. */
  function lay() {
    const drawn = edges.map((edge) => !only.checked || edge.verdict === "confirmed");
    const used = new Set(edges.flatMap((edge, k) => (drawn[k] ? [edge.from, edge.to] : [])));
    nodes.forEach((node, k) => { if (node.start) used.add(k); });
    const here = nodes.filter((_, k) => used.has(k));
    const chosen = edges.filter((_, k) => drawn[k]);
    const [width, height, rows, columns] = placed(here, chosen.map((edge) => [nodes[edge.from], nodes[edge.to]]));
    arranged(chosen, nodes, here);
    pinned = null;
    arrows = edges.map((edge, k) => (drawn[k] ? arrow(edge, k) : null));
    boxes = nodes.map((node, k) => (used.has(k) ? nodeBox(node, k) : null));
    for (const [name, value] of [["viewBox", `0 0 ${width} ${height}`], ["width", width], ["height", height]]) picture.setAttribute(name, value);
    picture.replaceChildren(
      ...rows.flatMap(([text, top, bottom]) => [
        draw("rect", { x: GUTTER - 6, y: top - 0.5, width: width - GUTTER + 6, height: bottom - top + 1, class: "level" }),
        draw("text", { x: 0, y: (top + bottom) / 2 + 4, class: "level" }, text)]),
      ...columns.map(([text, x]) => draw("text", { x, y: height - 4, "text-anchor": "middle", class: "level" }, text)),
      ...arrows.filter(Boolean), ...boxes.filter(Boolean));
    update();
  }

  function sample(kind) {
    return draw("svg", { viewBox: "0 0 30 8", width: 30, height: 8, "aria-hidden": "true", class: "graph-sample" },
      draw("path", { d: "M0 4H30", class: `arrow ${kind}`, "stroke-width": 3 }));
  }

  function arrow(edge, k) {
    const { path, tip } = edge;
    const sign = edge.effect > 0 ? "lowers" : "raises";
    return draw("g", { class: `link ${edge.verdict === "confirmed" ? "" : "undecided"}`, tabindex: "-1", role: "img", "aria-label": edge.text,
      on: { pointerenter: () => light(k, true), pointerleave: () => light(k, false), focus: () => light(k, true), blur: () => light(k, false) } },
    draw("path", { d: path, class: "hit" }),
    draw("path", { d: path, class: `arrow ${sign}`, "stroke-width": (1 + 4 * edge.size).toFixed(2) }),
    draw("path", { d: tip, class: `tip ${sign}` }),
    draw("text", { x: edge.middle[0], y: edge.middle[1], "text-anchor": "middle", class: "edge-label" }, `${edge.channel} ${signed(edge.effect, 2)}`));
  }

  function nodeBox(node, k) {
    const label = draw("text", { x: node.x, y: node.y + 4, "text-anchor": "middle" }, node.label.length > 10 ? `${node.label.slice(0, 9)}…` : node.label);
    const known = node.neuron && PAGE_OF.has(node.neuron);
    const box = draw("g", { class: `node ${node.kind}${node.start ? " start" : ""}${node.neuron && node.neuron === here ? " here" : ""}`,
      tabindex: "0", role: "button", "aria-pressed": "false", "aria-label": `${node.label}, ${node.kind}, position ${node.column}: pin it`,
      on: {
        click: () => pin(k),
        keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(k); } },
        pointerenter: () => showHint(box, `${node.label} · ${node.kind} · position ${node.column}`),
        pointerleave: hideHint,
      } },
    draw("rect", { x: node.x - node.wide / 2, y: node.y - BOX / 2, width: node.wide, height: BOX, rx: node.kind === "neuron" ? BOX / 2 : 3 }),
    known ? null : label);
    if (!known) return box;
    return draw("g", {}, box, draw("a", { href: linkOf(node.neuron), "aria-label": `page of ${node.label}` }, label));
  }

  /** A pinned node keeps its edges and dims the rest. */
  function pin(k) {
    pinned = pinned === k ? null : k;
    boxes.forEach((box, j) => {
      if (box) (box.matches(".node") ? box : box.querySelector(".node")).setAttribute("aria-pressed", String(j === pinned));
    });
    update();
  }

  function update() {
    const least = Number(slider.value) / 100;
    sliderSays.value = `${slider.value} %`;
    let n = 0;
    const touched = new Set();
    edges.forEach((edge, k) => {
      edge.shown = edge.size >= least && (!only.checked || edge.verdict === "confirmed");
      const near = pinned === null || edge.from === pinned || edge.to === pinned;
      arrows[k]?.toggleAttribute("hidden", !edge.shown);
      arrows[k]?.classList.toggle("dim", !near);
      arrows[k]?.classList.toggle("lit", pinned !== null && near);
      lines[k].hidden = !edge.shown;
      lines[k].classList.toggle("pinned", pinned !== null && near);
      if (!edge.shown) return;
      n += 1;
      if (near) touched.add(edge.from).add(edge.to);
    });
    boxes.forEach((box, k) => {
      if (!box) return;
      box.classList.toggle("dim", pinned !== null && !touched.has(k) && k !== pinned);
      box.classList.toggle("idle", pinned === null && !touched.has(k));
    });
    said.textContent = `${count(n)} of ${count(edges.length)} edges shown.`;
    pinSays.replaceChildren();
    if (pinned !== null) {
      const node = nodes[pinned];
      pinSays.append(`Pinned: ${node.label}, `, `${edges.filter((edge) => edge.shown && (edge.from === pinned || edge.to === pinned)).length} edges. `);
      if (node.neuron && PAGE_OF.has(node.neuron)) pinSays.append(make("a", { href: linkOf(node.neuron) }, `Page of ${node.neuron}`));
    }
  }

  function light(k, on) {
    arrows[k].classList.toggle("lit", on || (pinned !== null && (edges[k].from === pinned || edges[k].to === pinned)));
    lines[k].classList.toggle("lit", on);
    if (on && edges[k].shown) showHint(arrows[k].querySelector(".edge-label"), edges[k].text);
    else hideHint();
  }

  /** From a node along its edges, and back with Escape. */
  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step && event.key !== "Escape") return;
    const box = boxes.findIndex((one) => one?.contains(document.activeElement));
    const at = arrows.indexOf(document.activeElement);
    event.stopPropagation();
    if (event.key === "Escape") {
      if (at >= 0) boxes[walked].querySelector("rect").parentNode.focus();
      else if (pinned !== null) pin(pinned);
      return;
    }
    event.preventDefault();
    if (box >= 0) walked = box;
    const near = edges.flatMap((edge, k) => (edge.shown && (edge.from === walked || edge.to === walked) ? [k] : []));
    if (!near.length) return;
    const next = at < 0 ? (step > 0 ? 0 : near.length - 1) : (near.indexOf(at) + step + near.length) % near.length;
    arrows[near[next]].focus();
  }
}

/** What an edge is called: with positions where there are several. */
function nameOf(from, to, several) {
  const at = (node) => (several && node.column ? ` at ${node.column.split(" ")[0].replace("-", "−")}` : "");
  return from.column === to.column || !to.column ? `${from.label} → ${to.label}${at(from)}` : `${from.label}${at(from)} → ${to.label}${at(to)}`;
}

/** Gives every node its x and y; returns the size of the picture, and the names of rows and columns. */
function placed(nodes, edges) {
  const level = (node) => node.layer * 2 + (["mlp", "neuron"].includes(node.kind) ? 1 : 0);
  const levels = [...new Set(nodes.map(level))].sort((a, b) => a - b);
  const places = [...new Set(nodes.map((node) => node.place))].sort((a, b) => a - b);
  const cell = (at, place) => nodes.filter((node) => level(node) === at && node.place === place);
  // A crowded row is broken into lines.
  const lines = levels.map((at) => Math.ceil(Math.max(...places.map((place) => cell(at, place).length)) / MOST));
  const height = lines.reduce((sum, n) => sum + ROW + (n - 1) * LINE, 0) + 28;
  const tops = []; // y of the highest line of each level
  let bottom = height - 28 - ROW / 2;
  let base = 0;
  levels.forEach((at, k) => {
    for (const place of places) cell(at, place).forEach((node) => { node.base = base; node.bottom = bottom; });
    tops.push(bottom - (lines[k] - 1) * LINE);
    base += lines[k];
    bottom = tops[k] - ROW;
  });
  let left = GUTTER;
  const columns = places.map((place) => {
    const here = nodes.filter((node) => node.place === place);
    const wide = Math.max(...levels.map((at) => Math.min(MOST, Math.max(1.6, cell(at, place).length)))) * LANE + 28;
    here.forEach((node) => { node.x = left + wide / 2; });
    left += wide;
    return [here[0].column ? `position ${here[0].column.replace("-", "−")}` : "", left - wide / 2];
  });
  // Twice: each row in the order of what it is joined to, so that fewer arrows cross.
  for (let turn = 0; turn < 2; turn += 1) {
    for (const at of levels) {
      places.forEach((place, column) => {
        const here = cell(at, place);
        for (const node of here) {
          const near = edges.flatMap(([from, to]) => (from === node ? [to.x] : to === node ? [from.x] : []));
          node.wish = near.length ? near.reduce((sum, x) => sum + x, 0) / near.length : node.x;
        }
        here.sort((one, other) => one.wish - other.wish);
        here.forEach((node, j) => {
          const line = Math.floor(j / MOST);
          const among = Math.min(MOST, here.length - line * MOST);
          node.row = node.base + line;
          node.y = node.bottom - line * LINE;
          // A node alone in its row stands to one side, in turn, so that arrows pass it.
          const alone = here.length === 1 && !node.start && node.kind !== "answer" && node.kind !== "token";
          const aside = alone ? (node.row % 2 ? 0.5 : -0.5) : 0;
          node.x = columns[column][1] + ((j % MOST) - (among - 1) / 2 + aside) * LANE;
        });
      });
    }
  }
  const rows = levels.map((at, k) => {
    const node = nodes.find((one) => level(one) === at);
    const text = { token: "tokens", answer: "answer" }[node.kind] || `${node.layer} ${at % 2 ? "MLP" : "attention"}`;
    return [text, tops[k], tops[k] + (lines[k] - 1) * LINE];
  });
  return [left, height, rows, columns];
}

/** Gives every edge its curve: its ends beside those of other edges, its middle between the boxes. */
function arranged(edges, nodes, here) {
  const ends = new Map(); // where each edge leaves and reaches, along the side of a box
  for (const [key, near, far] of [["from", "from", "to"], ["to", "to", "from"]]) {
    nodes.forEach((node, k) => {
      const here = edges.filter((edge) => edge[near] === k).sort((a, b) => nodes[a[far]].x - nodes[b[far]].x);
      here.forEach((edge, j) => {
        if (!ends.has(edge)) ends.set(edge, {});
        ends.get(edge)[key] = node.x + ((j + 1) / (here.length + 1) - 0.5) * node.wide;
      });
    });
  }
  for (const edge of edges) {
    const [a, b] = [nodes[edge.from], nodes[edge.to]];
    const up = b.y <= a.y ? 1 : -1;
    const [x1, x2] = [ends.get(edge).from, ends.get(edge).to];
    const [y1, y2] = [a.y - (up * BOX) / 2, b.y + up * (BOX / 2 + 7)];
    const [low, high] = [Math.min(a.row, b.row), Math.max(a.row, b.row)];
    const way = clear((x1 + x2) / 2, here.filter((node) => node.row > low && node.row < high));
    // A curve whose middle is at `way`; with nothing between it leaves and arrives upright.
    const bent = high - low > 1 ? (8 * way - x1 - x2) / 6 : null;
    const lift = (bent === null ? 0.45 : 0.3) * Math.abs(y1 - y2) + 4;
    const [c1, c2] = [[bent ?? x1, y1 - up * lift], [bent ?? x2, y2 + up * lift]];
    edge.path = `M${point([x1, y1])}C${point(c1)} ${point(c2)} ${point([x2, y2])}`;
    edge.middle = [(x1 + 3 * c1[0] + 3 * c2[0] + x2) / 8, (y1 + 3 * c1[1] + 3 * c2[1] + y2) / 8];
    const long = Math.hypot(x2 - c2[0], y2 - c2[1]) || 1;
    const [dx, dy] = [(x2 - c2[0]) / long, (y2 - c2[1]) / long];
    const half = 3.5 + 2.5 * edge.size;
    edge.tip = `M${point([x2 + dx * 7, y2 + dy * 7])}L${point([x2 - dy * half, y2 + dx * half])}L${point([x2 + dy * half, y2 - dx * half])}Z`;
  }
}

/** The x nearest to the wished one that is in none of the boxes. */
function clear(wished, boxes) {
  for (let away = 0; away < 600; away += 4) {
    for (const x of [wished - away, wished + away]) {
      if (boxes.every((box) => Math.abs(box.x - x) > box.wide / 2 + 9)) return x;
    }
  }
  return wished;
}

function point([x, y]) {
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}
