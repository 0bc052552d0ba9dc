// State, keys, what is around the tree: modes, progress, ledger; asking a live server.

const state = { iteration: 0, tree: 0, chosen: 0, mode: "entropy", sort: "decisions", query: "", order: [], open: false };
let run = null, scale = null, pinned = null;
let waiting = null, reading = false;  // live: trees not shown yet, because somebody reads others

const KEYS = [["j, k", "next, previous task"], ["n, p", "next, previous trajectory"], ["[, ]", "previous, next branch"], ["u", "the branch's parent"],
  ["1 to 5", "colour by entropy, future value, score, advantage, nothing"], ["f", "unfold or fold all tools"], ["d", "dark or light"], ["/", "search tasks"], ["?", "these keys"]];

function iteration() { return run.iterations[state.iteration]; }
function tree() { return iteration() && iteration().trees[state.tree]; }

function take(data) {
  for (const one of data.iterations) one.trees.forEach(expand);
  run = data;
  state.iteration = Math.max(0, data.iterations.length - 1);
  chooseIteration(state.iteration);
}

function chooseIteration(index) {
  state.iteration = index;
  rescale();
  const trees = iteration() ? iteration().trees : [];
  state.tree = trees.reduce((best, one, i) => (worth(one) > worth(trees[best]) ? i : best), 0);
  state.chosen = telling(trees[state.tree]);
  renderAll();
}

function worth(one) { return one.telling + (one.scored ? 1e-3 : 0); }

function telling(one) {
  // The branch whose reward differs most from its parent's, else the first trajectory.
  if (!one || !one.largest) return 0;
  return one.trajectories.reduce((best, t, i) => (Math.abs(t.gain) > Math.abs(one.trajectories[best].gain) ? i : best), 0);
}

function rescale() { scale = iteration() && state.mode !== "plain" ? scaleOf(iteration().trees, state.mode) : null; }
function chooseTree(index) { reading = true; state.tree = index; state.chosen = telling(tree()); renderList(); renderDetail(); document.getElementById("detail").scrollTop = 0; }
function choose(index) {
  const lane = document.activeElement && document.activeElement.closest(".lane");
  state.chosen = index;
  reading = true;
  renderDetail();
  const again = lane && document.querySelector(`.lane[data-index="${index}"]`);
  if (again) again.focus();
}
function chooseMode(mode) { state.mode = mode; rescale(); renderHeader(); renderDetail(); }

function renderAll() { renderHeader(); renderList(); renderDetail(); renderLedger(); }

function renderHeader() {
  const env = Array.isArray(run.env) ? run.env.join(" ") : run.env;
  replace("title", element("b", {}, run.run), ` ${run.method.replace("learners.", "")} on ${env}`);
  document.title = `${run.run}: rollout trees`;
  replace("modes", element("span", { class: "facts" }, "Colour by "), MODES.map((mode, i) => element("button", { class: "mode", role: "radio", "aria-checked": mode.key === state.mode, "data-mode": mode.key, title: `key ${i + 1}`, onclick: () => chooseMode(mode.key) }, mode.label)));
  const select = element("select", { "aria-label": "Iteration", onchange: (event) => chooseIteration(Number(event.target.value)) },
    run.iterations.map((one, i) => element("option", { value: i, selected: i === state.iteration }, `iteration ${one.number}`)));
  replace("buttons", run.iterations.length ? select : null,
    element("button", { onclick: toggleFold, title: "key f", id: "fold" }, state.open ? "Fold tools" : "Unfold tools"),
    element("button", { onclick: toggleTheme, title: "key d", id: "theme" }, "Dark / light"),
    element("button", { onclick: help, title: "key ?", id: "keys" }, "Keys"));
  replace("progress", progress(), curve(run.curves["reward/mean"] || []));
}

function progress() {
  const told = run.planned ? `${run.done} of ${run.planned} iterations` : `${run.done} iterations`;
  const newer = waiting && element("button", { id: "newer", onclick: () => { const data = waiting; waiting = null; reading = false; take(data); } }, `show iteration ${waiting.iterations[0].number}`);
  return [element("span", { class: "facts", id: "done" }, told + (run.live ? " · live" : "")), newer];
}

function curve(points) {
  if (points.length < 2) return null;
  const width = 150, height = 30, values = points.map((p) => p[1]);
  const low = Math.min(...values), high = Math.max(...values), last = points[points.length - 1][0] || 1;
  const at = ([i, v]) => [4 + (i / last) * (width - 8), height - 5 - ((v - low) / (high - low || 1)) * (height - 10)];
  const svg = element("svg", { width, height, role: "img", "aria-label": `mean reward from ${number(values[0])} to ${number(values[values.length - 1])}` },
    element("polyline", { class: "curve", points: points.map((p) => at(p).map((c) => c.toFixed(1)).join(",")).join(" ") }));
  const here = iteration() && points.find((p) => p[0] === iteration().number);
  if (here) svg.append(element("circle", { class: "here", cx: at(here)[0], cy: at(here)[1], r: 3.5 }));
  return element("span", { class: "curve-of", title: "mean reward of initial rollouts, by iteration" }, svg, `reward ${number(values[values.length - 1])}`);
}

function renderList() {
  const one = iteration();
  if (!one) return replace("list", element("p", { class: "facts" }, "No trees yet."));
  const { order, nodes } = drawList(one.trees, state.tree, state.sort, state.query, chooseTree);
  state.order = order;
  const box = document.getElementById("found");
  const left = one.leftOut ? element("p", { class: "facts" }, `${one.leftOut} more trees of this iteration are not in this page; --megabytes takes more.`) : null;
  if (box) return box.replaceChildren(...nodes, ...(left ? [left] : []));
  const sorts = [["decisions", "decisions that mattered"], ["reward", "lowest reward"], ["order", "order of the run"]];
  replace("list",
    element("input", { id: "search", type: "search", placeholder: "Search tasks", "aria-label": "Search tasks", oninput: (event) => { state.query = event.target.value; renderList(); } }),
    element("select", { "aria-label": "Order", onchange: (event) => { state.sort = event.target.value; renderList(); } }, sorts.map(([key, label]) => element("option", { value: key, selected: key === state.sort }, label))),
    element("div", { id: "found" }, nodes, left));
}

function renderDetail() {
  const one = tree();
  if (!one) return ["question", "tree", "legend", "decisions", "text"].forEach((id) => replace(id));
  const answer = one.answers ? one.answers.join(" or ") : null;
  replace("question", element("h1", {}, one.question === null ? `${one.task}: text withheld` : one.question),
    element("p", { class: "facts" }, answer ? ["expected ", element("code", {}, answer), " · "] : null, `task ${one.task}`, one.unavailable ? ` · dropped: ${one.unavailable}` : ""),
    element("p", { id: "summed" }, summed(one)));
  replace("tree", drawTree(one, state.chosen, state.mode, scale, choose));
  replace("legend", legend(one));
  replace("decisions", drawDecisions(one, state.chosen, choose));
  replace("text", drawText(one, state.chosen, state.mode, scale, choose));
  if (state.open) document.querySelectorAll("details.call").forEach((node) => { node.open = true; });
  inspect(null);
}

function legend(one) {
  const mode = MODES.find((m) => m.key === state.mode), chosen = one.trajectories[state.chosen];
  const marks = element("span", { class: "facts" }, "▬ what tools said · ◆ branch points · ends: ✓ right ◐ partly ✗ wrong ⊘ penalised · ▲▼ against the parent");
  if (mode.key === "plain") return [marks];
  if (!scale) return [element("span", { class: "absent" }, `${mode.label}: ${ABSENT[mode.key] || "not stored"}`), marks];
  const low = mode.middle === null ? 0 : mode.middle - scale, high = (mode.middle || 0) + scale;
  const steps = Array.from({ length: 9 }, (_, i) => low + ((high - low) * i) / 8);
  const swatches = steps.map((value) => {
    const made = element("span", { class: "swatch" });
    made.style.backgroundColor = colour(value, mode.key, scale) || "transparent";
    return made;
  });
  const known = chosen && chosen[mode.key] && chosen[mode.key].some((value, i) => i >= chosen.shared && value !== null);
  return [element("span", {}, `${mode.label} ${mode.unit}`), element("span", {}, number(low)), element("span", { class: "swatches" }, swatches), element("span", {}, number(high)),
    marks,
    known ? null : element("span", { class: "absent" }, `${chosen ? nameOf(chosen) : ""}: ${ABSENT[mode.key] || "not stored"}`)];
}

function inspect(target) {
  const one = target && tree().trajectories[Number(target.dataset.one)];
  if (!one) return replace("inspector", element("span", { class: "facts" }, "Point at a token to see its numbers; click to keep them."));
  const i = Number(target.dataset.i), value = (key) => number(one[key] ? one[key][i] : null);
  const chance = one.logprob && one.logprob[i] !== null ? `${number(100 * Math.exp(one.logprob[i]), 1)} %` : "–";
  const fact = (name, text) => element("span", { class: "fact" }, `${name} `, element("b", {}, text));
  replace("inspector", element("code", {}, visible(one.tokens[i])), fact("token", i), fact("probability", chance), fact(one.exact ? "entropy" : "entropy (sampler’s)", value("entropy")),
    fact("future value", value("future")), fact("branching score", value("branching")), fact("advantage", value("advantage")), element("span", { class: "facts" }, nameOf(one)));
}

function meaning(name) {
  if (run.meanings[name]) return run.meanings[name];
  const fitting = Object.keys(run.meanings).filter((n) => n.includes("<") && name.startsWith(n.split("<")[0]));
  return fitting.length ? run.meanings[fitting[0]] : "";
}

// Tokens, calls, the judge, states, money; what is not named here comes last.
const LEDGER = ["sampled_tokens", "reused_tokens", "prefilled_tokens", "trained_tokens", "scored_tokens", "updated_tokens", "computed_tokens", "flops",
  "tool_calls", "inherited_calls", "free_calls", "retries", "judge_calls", "judge_cached", "judge_faults", "forked_states", "replayed_states", "cost", "lost"];

function place(name) {
  const found = LEDGER.findIndex((known) => name.startsWith(known));
  return found < 0 ? LEDGER.length : found;
}

function amount(name, value) {
  return name.startsWith("memory/") && value !== undefined ? `${number(value / 2 ** 20, 0)} MiB` : number(value, name.endsWith("/cost") ? 4 : 1);
}

function costs(title, area, here) {
  const names = [...new Set([...Object.keys(here), ...Object.keys(run.totals), ...Object.keys(run.evaluated)])].filter((n) => n.startsWith(area));
  names.sort((a, b) => place(a.replace(area, "")) - place(b.replace(area, "")) || (a < b ? -1 : 1));
  if (!names.length) return null;
  const extra = Object.keys(run.evaluated).some((n) => n.startsWith(area));
  const columns = [here, run.totals, ...(extra ? [run.evaluated] : [])], heads = ["iteration", area === "memory/" ? "most" : "run", "evals"];
  const row = (name) => element("tr", { title: meaning(name) },
    element("th", { scope: "row" }, name.replace(area, "").replace(/_/g, " ")),
    columns.map((told) => element("td", { class: "n" }, amount(name, told[name]))));
  const titles = columns.map((_, i) => element("th", { scope: "col", title: i === 2 ? "evaluations and validations of this run" : null }, heads[i]));
  const head = element("tr", {}, element("th", { scope: "col", class: "what" }, title), titles);
  return element("table", {}, element("thead", {}, head), element("tbody", {}, names.map(row)));
}

function renderLedger() {
  const here = iteration() ? iteration().metrics : {};
  const sampled = here["ledger/sampled_tokens"] || 0, reused = here["ledger/reused_tokens"] || 0;
  const saved = reused ? `Branches reused ${number((100 * reused) / (sampled + reused), 1)} % of this iteration’s ${number(sampled + reused)} tokens.` : "";
  const others = Object.keys(here).filter((n) => /^(reward|branch|group|advantage|score)\//.test(n)).sort();
  const row = (name) => element("tr", { title: meaning(name) }, element("th", { scope: "row" }, name.replace(/_/g, " ")), element("td", { class: "n" }, number(here[name])));
  replace("ledger", element("h2", {}, "Ledger"), element("p", { class: "facts" }, saved),
    costs("counts", "ledger/", here), costs("seconds", "seconds/", here), costs("memory", "memory/", here),
    element("h2", {}, "Rewards and branches"), element("table", {}, element("tbody", {}, others.map(row))));
}

function toggleFold() { state.open = !state.open; document.querySelectorAll("details.call").forEach((node) => { node.open = state.open; }); renderHeader(); }
function toggleTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}
function help() {
  const box = document.getElementById("help");
  if (box.open) return box.close();
  replace("help", element("h2", {}, "Keys"), element("table", {}, KEYS.map(([key, told]) => element("tr", {}, element("th", { scope: "row" }, element("kbd", {}, key)), element("td", {}, told)))), element("button", { onclick: () => box.close() }, "Close"));
  box.showModal();
}

function beside(list, value, step) { return list[(list.indexOf(value) + step + list.length) % list.length]; }
function onKey(event) {
  if (!run || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape" && event.target.blur) event.target.blur();
    return;
  }
  const one = tree(), lanes = one ? inOrder(one).map((l) => l.one.index) : [], branches = lanes.filter((i) => one.trajectories[i].source);
  const actions = { j: () => moveTree(1), k: () => moveTree(-1), n: () => choose(beside(lanes, state.chosen, 1)), p: () => choose(beside(lanes, state.chosen, -1)),
    "]": () => branches.length && choose(beside(branches, state.chosen, 1)), "[": () => branches.length && choose(beside(branches, state.chosen, -1)),
    u: () => one.trajectories[state.chosen].source && choose(one.trajectories[state.chosen].source.index), f: toggleFold, d: toggleTheme, "?": help, "/": () => document.getElementById("search").focus() };
  MODES.forEach((mode, i) => { actions[String(i + 1)] = () => chooseMode(mode.key); });
  const action = actions[event.key];
  if (action && (one || "d?/".includes(event.key))) { event.preventDefault(); action(); }
}
function moveTree(step) {
  if (!state.order.length) return;
  chooseTree(beside(state.order, state.tree, step));
  const item = document.querySelector(".item.chosen");
  if (item) item.scrollIntoView({ block: "nearest" });
}

async function ask() {
  // A live page: new trees are shown at once, unless somebody has chosen what to read.
  try {
    const newest = waiting || run;
    const known = newest && newest.iterations.length ? newest.iterations[0].number : -1;
    const data = await (await fetch(`data.json?known=${known}`)).json();
    data.live = true;
    if (!run || (data.iterations.length && !reading)) take(data);
    else { if (data.iterations.length) waiting = data; Object.assign(run, { done: data.done, curves: data.curves, totals: data.totals, evaluated: data.evaluated, live: true }); renderHeader(); renderLedger(); }
  } catch (error) {
    replace("progress", element("span", { class: "absent" }, `no answer from the server: ${error.message}`));
  }
  setTimeout(ask, 2000);
}

document.addEventListener("keydown", onKey);
document.addEventListener("mouseover", (event) => { const t = event.target.closest && event.target.closest(".t"); if (t && !pinned) inspect(t); });
document.addEventListener("click", (event) => {
  const t = event.target.closest && event.target.closest(".t");
  if (pinned) pinned.classList.remove("pinned");
  pinned = t === pinned ? null : t;
  if (pinned) { pinned.classList.add("pinned"); inspect(pinned); }
});
addEventListener("resize", () => { if (run && tree()) replace("tree", drawTree(tree(), state.chosen, state.mode, scale, choose)); });
const told = JSON.parse(document.getElementById("data").textContent);
if (told === null) ask();
else take(told);
