"use strict";
// Without this script the page shows everything except the completions. Text from runs is always set as
// text, never as HTML.

const PAGE = 25; // completions shown at once
const LONG = 1500; // longer texts show this many characters until a button is pressed

const make = (name, text, className) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};

// The reader's choices survive the reloads of a page that is being watched.
const memory = {
  key: `dibs report ${location.pathname}`,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(change) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...change })); } catch { /* no storage */ }
  },
};

function completionsBrowser() {
  const { runs, prompts, rows } = JSON.parse(document.getElementById("completions-data").textContent);
  const form = document.getElementById("filter");
  const results = document.getElementById("results");
  const more = document.getElementById("more");
  const matches = document.getElementById("matches");
  const all = rows.map(([run, step, prompt, completion, reward, status, rate, count]) => {
    const [id, question, answer] = prompts[prompt];
    return { run, step, id, question, answer, completion, reward, status, rate, count };
  });
  document.getElementById("without-script").remove();
  if (all.length === 0) {
    matches.textContent = "The runs keep no completions.";
    return;
  }

  const offer = (name, pairs) => {
    for (const [value, text] of pairs) form.elements[name].append(new Option(text, value));
  };
  const steps = [...new Set(all.map((row) => row.step))].filter((step) => step !== null).sort((a, b) => a - b);
  offer("run", runs.map((label, i) => [i, label]));
  offer("step", steps.map((step) => [step, step]));
  offer("status", [...new Set(all.map((row) => row.status))].sort().map((status) => [status, status || "none"]));
  for (const [name, value] of Object.entries(memory.read().filter || {})) {
    if (form.elements[name]) form.elements[name].value = value;
  }

  const rates = {
    none: (rate) => rate === 0,
    some: (rate) => rate !== null && rate > 0 && rate < 1,
    all: (rate) => rate === 1,
  };
  const known = (value, otherwise) => (value === null ? otherwise : value);
  const orders = {
    hard: (a, b) => known(a.rate, 2) - known(b.rate, 2),
    easy: (a, b) => known(b.rate, -1) - known(a.rate, -1),
    many: (a, b) => known(b.count, -1) - known(a.count, -1),
    long: (a, b) => b.completion.length - a.completion.length,
  };
  const chosen = (name) => form.elements[name].value;
  let found = [];
  let shown = 0;

  const longText = (text) => {
    const block = make("pre", text.length > LONG ? `${text.slice(0, LONG)} …` : text);
    if (text.length <= LONG) return [block];
    const button = make("button", `Show all ${text.length.toLocaleString("en")} characters`);
    button.type = "button";
    button.addEventListener("click", () => { block.textContent = text; button.remove(); });
    return [block, button];
  };
  const number = (value) => (value === null ? "unknown" : Number(value.toFixed(3)));
  const card = (row) => {
    const item = make("li");
    const facts = make("p", undefined, "facts");
    const tone = ["accepted", "rejected"].includes(row.status) ? row.status : "other";
    facts.append(
      make("span", row.status || "no status", tone),
      make("span", `reward ${number(row.reward)}`),
      make("span", `p_i ${number(row.rate)}`),
      make("span", `n_i ${number(row.count)}`),
      make("span", `step ${number(row.step)}`),
      make("span", runs[row.run]),
      make("span", `prompt ${row.id}`, "muted"),
    );
    item.append(facts);
    item.append(make("p", "Prompt", "part"), ...longText(row.question));
    item.append(make("p", "Completion", "part"), ...longText(row.completion));
    if (row.answer) item.append(make("p", "Answer", "part"), ...longText(row.answer));
    return item;
  };
  const showMore = () => {
    const next = found.slice(shown, shown + PAGE);
    results.append(...next.map(card));
    shown += next.length;
    more.hidden = shown >= found.length;
    matches.textContent = found.length === 0
      ? `None of ${all.length.toLocaleString("en")} completions match.`
      : `${found.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} completions match; ${shown.toLocaleString("en")} are shown.`;
    return results.children[shown - next.length];
  };
  const search = () => {
    const text = chosen("text").toLowerCase();
    const [run, step, status, rate] = ["run", "step", "status", "rate"].map(chosen);
    const anyStatus = form.elements.status.selectedIndex <= 0;
    found = all.filter((row) =>
      (run === "" || row.run === Number(run)) &&
      (step === "" || row.step === Number(step)) &&
      (anyStatus || row.status === status) &&
      (rate === "" || rates[rate](row.rate)) &&
      (text === "" || [row.question, row.completion, row.answer, row.id].some((part) => part.toLowerCase().includes(text))));
    if (orders[chosen("order")]) found.sort(orders[chosen("order")]);
    results.replaceChildren();
    shown = 0;
    showMore();
  };

  let waiting;
  form.addEventListener("input", () => {
    memory.write({ filter: Object.fromEntries(new FormData(form)) });
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const first = showMore();
    if (first) { first.tabIndex = -1; first.focus(); }
  });
  form.hidden = false;
  search();
}

function stepSliders() {
  for (const figure of document.querySelectorAll("figure[data-steps]")) {
    const steps = figure.dataset.steps.split(",");
    if (steps.length < 2) continue;
    const box = make("div", undefined, "stepper");
    const label = make("label", "Step");
    const slider = document.createElement("input");
    const output = make("output");
    Object.assign(slider, { type: "range", min: 0, max: steps.length, step: 1, value: 0 });
    const groups = steps.map((step) => figure.querySelectorAll(`svg .step-${step}`));
    const show = () => {
      const at = Number(slider.value);
      const text = at === 0 ? "all steps" : `step ${steps[at - 1]}`;
      output.textContent = text;
      slider.setAttribute("aria-valuetext", text);
      groups.forEach((group, i) => group.forEach((dots) => dots.classList.toggle("faded", at !== 0 && i !== at - 1)));
      memory.write({ [figure.id]: at });
    };
    slider.value = memory.read()[figure.id] || 0;
    slider.addEventListener("input", show);
    label.append(slider);
    box.append(label, output);
    figure.append(box);
    show();
  }
}

function reloads() {
  const live = document.getElementById("live");
  if (!live) return;
  const box = document.getElementById("reload");
  box.checked = memory.read().reload !== false;
  box.addEventListener("change", () => memory.write({ reload: box.checked }));
  // The browser keeps the scroll position. The page does not reload while the reader types a search.
  setInterval(() => {
    if (box.checked && document.activeElement?.name !== "text") location.reload();
  }, Number(live.dataset.seconds) * 1000);
}

completionsBrowser();
stepSliders();
reloads();
