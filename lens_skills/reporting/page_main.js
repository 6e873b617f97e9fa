// What is shown, by the address; keys, colours, copying and paper.

const summary = document.getElementById("summary");
const neuronPlace = document.getElementById("neuron-page");
const title = document.title;
document.body.append(hint);

const tablePlace = document.getElementById("neuron-table");
const table = tablePlace && (DATA.rows.length || EVERY) ? neuronTable(tablePlace) : null;
for (const place of document.querySelectorAll(".graph-place")) {
  place.append(circuitGraph(DATA.circuits[Number(place.dataset.circuit)]));
}

// The address: #neuron-L17N635 is a page, everything else a place in the summary.

let open = ""; // the neuron whose page is open
let left = 0; // how far down the summary was when it was left

function target() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1);
  }
}

function sequence() {
  const names = new Set(table ? table.shown() : []);
  const paged = [...names].filter((name) => PAGE_OF.has(name));
  return paged.includes(open) ? paged : DATA.neurons.map((page) => page.name);
}

function route() {
  const at = target();
  hideHint();
  if (at.startsWith("neuron-")) {
    if (!open) left = window.scrollY;
    open = at.slice("neuron-".length);
    neuronPlace.replaceChildren(...neuronPage(open, sequence()).filter(Boolean));
    neuronPlace.hidden = false;
    summary.hidden = true;
    document.title = `${open} – ${title}`;
    neuronPlace.querySelector("h2").focus({ preventScroll: true });
    window.scrollTo(0, 0);
    neuronPlace.scrollIntoView();
    return;
  }
  const from = open;
  open = "";
  neuronPlace.hidden = true;
  neuronPlace.replaceChildren();
  summary.hidden = false;
  document.title = title;
  if (!from) return; // the browser goes to the place by itself
  if (table) table.seen();
  const place = at ? document.getElementById(at) : null;
  // Back to the table or to nowhere: where the reader was.
  if (place && at !== "neurons") place.scrollIntoView();
  else window.scrollTo(0, left);
  const link = [...document.querySelectorAll("#neuron-table tbody a")].find((one) => one.textContent === from);
  if (link && at === "neurons") link.focus({ preventScroll: true });
}

window.addEventListener("hashchange", route);

// Keys.

const KEYS = [
  ["/", "filter the neurons"],
  ["j or →", "next neuron, on the page of one"],
  ["k or ←", "previous neuron"],
  ["u or Esc", "back from a neuron to the table"],
  ["d", "light or dark"],
  ["?", "these keys"],
];

const help = make("dialog", { "aria-label": "Keys" },
  make("h2", {}, "Keys"),
  make("dl", { class: "facts" }, KEYS.map(([key, text]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)))),
  make("form", { method: "dialog" }, make("button", {}, "Close")));
document.body.append(help);
// A form would be sent; the policy of the page forbids it, so closing is done here.
help.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); help.close(); });

function step(by) {
  const names = sequence();
  const next = names[names.indexOf(open) + by];
  if (open && next !== undefined) location.hash = linkOf(next);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.key === "Escape") hideHint();
  const typing = event.target.closest("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  const arrows = !event.target.closest(".scroll"); // there they scroll
  const does = {
    "/": () => { if (open) location.hash = "#neurons"; setTimeout(() => table?.focus(), 0); },
    j: () => step(1),
    k: () => step(-1),
    ArrowRight: () => arrows && step(1),
    ArrowLeft: () => arrows && step(-1),
    u: () => { if (open) location.hash = "#neurons"; },
    Escape: () => { if (open) location.hash = "#neurons"; },
    d: recolour,
    "?": () => help.showModal(),
  };
  if (!Object.hasOwn(does, event.key)) return;
  does[event.key]();
  if (["/", "?"].includes(event.key)) event.preventDefault();
});

// Light or dark: the system's, until the button is pressed.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : dark.matches;
}

function recolour() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  recolourButton();
}

function recolourButton() {
  theme.textContent = isDark() ? "Light" : "Dark";
}

const theme = make("button", { type: "button", on: { click: recolour } });
dark.addEventListener("change", recolourButton);
recolourButton();
document.getElementById("tools").append(theme, make("button", { type: "button", on: { click: () => help.showModal() } }, "Keys"));

// Copying a command: the clipboard is not everywhere open to a file, so the old way is tried, too.

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { readonly: true, style: { position: "fixed", opacity: "0" } });
    field.value = text;
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : "Not copied: select it";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

for (const command of document.querySelectorAll(".command")) {
  const text = command.querySelector("code").textContent;
  const button = make("button", { type: "button", "aria-label": "Copy the command", on: { click: () => copy(text, button) } }, "Copy");
  command.append(button);
}

// Hints: what has one shows it to the pointer and to the focus.

for (const [event, does] of [["pointerover", true], ["focusin", true], ["pointerout", false], ["focusout", false]]) {
  document.addEventListener(event, (happened) => {
    const near = happened.target.closest?.("[data-hint]");
    if (!near) return;
    if (does) showHint(near, near.dataset.hint);
    else hideHint();
  });
}

// Paper: more rows, and what the columns say. Numbers of figures stay folded: they fill many pages.

function print(on) {
  table?.print(on);
  if (on) for (const image of document.images) image.loading = "eager";
  for (const details of document.querySelectorAll("details.help")) {
    if (on && !details.open) {
      details.open = true;
      details.dataset.unfolded = "";
    } else if (!on && "unfolded" in details.dataset) {
      details.open = false;
      delete details.dataset.unfolded;
    }
  }
}

window.addEventListener("beforeprint", () => print(true));
window.addEventListener("afterprint", () => print(false));
window.matchMedia("print").addEventListener("change", (event) => print(event.matches));

route();
if (!open && location.hash) document.getElementById(target())?.scrollIntoView();
