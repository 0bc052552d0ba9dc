// The page's state and what changes it: choices, keys, and the updates of a live server.

const state = {
  iteration: 0,
  tree: 0,
  chosen: 0,
  mode: "entropy",
  sort: "decisions",
  query: "",
  order: [],
  open: false,
};
let run = null;
let scale = null;
let pinned = null;
// On a live page: new data is held back once the reader has chosen what to look at.
let pending = null;
let reading = false;

const KEYS = [
  ["j, k", "next, previous task"],
  ["n, p", "next, previous trajectory"],
  ["[, ]", "previous, next branch"],
  ["u", "the branch’s parent"],
  ["1 to 5", "colour by entropy, future value, score, advantage, nothing"],
  ["f", "fold or unfold all tools"],
  ["d", "dark or light"],
  ["/", "search tasks"],
  ["?", "show or hide these keys"],
];

function currentIteration() {
  return run.iterations[state.iteration];
}
function currentTree() {
  return currentIteration() && currentIteration().trees[state.tree];
}

function showRun(data) {
  for (const iteration of data.iterations) iteration.trees.forEach(expandTree);
  run = data;
  chooseIteration(Math.max(0, data.iterations.length - 1));
}

function showPending() {
  const data = pending;
  pending = null;
  reading = false;
  showRun(data);
}

function chooseIteration(index) {
  state.iteration = index;
  updateScale();
  const trees = currentIteration() ? currentIteration().trees : [];
  // Of trees with equal effects, one with branching scores has more to show.
  const interest = (tree) => tree.effect + (tree.scored ? 1e-3 : 0);
  state.tree = trees.reduce((best, tree, i) => (interest(tree) > interest(trees[best]) ? i : best), 0);
  state.chosen = findStrongest(trees[state.tree]);
  drawAll();
}

function findStrongest(tree) {
  // The branch whose reward differs most from its parent's, else the first trajectory.
  if (!tree || !tree.largestGain) return 0;
  return strongestBranch(tree.trajectories).index;
}

function updateScale() {
  scale = currentIteration() && state.mode !== "plain" ? scaleOf(currentIteration().trees, state.mode) : null;
}

function chooseTree(index) {
  reading = true;
  state.tree = index;
  state.chosen = findStrongest(currentTree());
  drawListPane();
  drawDetail();
  document.getElementById("detail").scrollTop = 0;
}

function choose(index) {
  const focused = document.activeElement && document.activeElement.closest(".lane");
  state.chosen = index;
  reading = true;
  drawDetail();
  // The focused lane was replaced: give the focus to its successor, so that keys go on working.
  const lane = focused && document.querySelector(`.lane[data-index="${index}"]`);
  if (lane) lane.focus();
}

function chooseMode(mode) {
  state.mode = mode;
  updateScale();
  drawHeader();
  drawDetail();
}

function toggleFold() {
  state.open = !state.open;
  document.querySelectorAll("details.call").forEach((node) => {
    node.open = state.open;
  });
  drawHeader();
}

function toggleTheme() {
  const { dataset } = document.documentElement;
  const dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = dark ? "light" : "dark";
}

function toggleHelp() {
  const dialog = document.getElementById("help");
  if (dialog.open) return dialog.close();
  const rows = KEYS.map(([key, effect]) =>
    element("tr", {}, element("th", { scope: "row" }, element("kbd", {}, key)), element("td", {}, effect)),
  );
  replace(
    "help",
    element("h2", {}, "Keys"),
    element("table", {}, rows),
    element("button", { onclick: () => dialog.close() }, "Close"),
  );
  dialog.showModal();
}

function neighbour(list, value, step) {
  return list[(list.indexOf(value) + step + list.length) % list.length];
}

function chooseNextTree(step) {
  if (!state.order.length) return;
  chooseTree(neighbour(state.order, state.tree, step));
  const item = document.querySelector(".item.chosen");
  if (item) item.scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  if (
    !run ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
  ) {
    if (event.key === "Escape" && event.target.blur) event.target.blur();
    return;
  }
  const actions = {
    f: toggleFold,
    d: toggleTheme,
    "?": toggleHelp,
    "/": () => document.getElementById("search").focus(),
  };
  MODES.forEach((mode, i) => {
    actions[String(i + 1)] = () => chooseMode(mode.key);
  });
  const tree = currentTree();
  if (tree) Object.assign(actions, treeActions(tree));
  const action = actions[event.key];
  if (action && (tree || "d?/".includes(event.key))) {
    event.preventDefault();
    action();
  }
}

function treeActions(tree) {
  const lanes = orderLanes(tree).map((lane) => lane.trajectory.index);
  const branches = lanes.filter((i) => tree.trajectories[i].source);
  const { source } = tree.trajectories[state.chosen];
  return {
    j: () => chooseNextTree(1),
    k: () => chooseNextTree(-1),
    n: () => choose(neighbour(lanes, state.chosen, 1)),
    p: () => choose(neighbour(lanes, state.chosen, -1)),
    "]": () => branches.length && choose(neighbour(branches, state.chosen, 1)),
    "[": () => branches.length && choose(neighbour(branches, state.chosen, -1)),
    u: () => source && choose(source.index),
  };
}

async function poll() {
  // New trees are shown at once, unless the reader has chosen what to look at.
  try {
    const newest = pending || run;
    const since = newest && newest.iterations.length ? newest.iterations[0].number : -1;
    const data = await (await fetch(`data.json?since=${since}`)).json();
    data.live = true;
    if (!run || (data.iterations.length && !reading)) showRun(data);
    else {
      if (data.iterations.length) pending = data;
      const { done, curves, totals, evaluated } = data;
      Object.assign(run, { done, curves, totals, evaluated, live: true });
      drawHeader();
      drawLedger();
    }
  } catch (error) {
    replace("progress", element("span", { class: "absent" }, `no answer from the server: ${error.message}`));
  }
  setTimeout(poll, 2000);
}

function tokenOf(event) {
  return event.target.closest && event.target.closest(".t");
}

function onHover(event) {
  const token = tokenOf(event);
  if (token && !pinned) inspect(token);
}

function onClick(event) {
  // Pins a token; a click on it or anywhere else unpins it.
  const token = tokenOf(event);
  if (pinned) pinned.classList.remove("pinned");
  pinned = token === pinned ? null : token;
  if (pinned) {
    pinned.classList.add("pinned");
    inspect(pinned);
  }
}

function onResize() {
  if (run && currentTree()) replace("tree", drawTree(currentTree(), state.chosen, state.mode, scale, choose));
}

document.addEventListener("keydown", onKey);
document.addEventListener("mouseover", onHover);
document.addEventListener("click", onClick);
addEventListener("resize", onResize);
const embedded = JSON.parse(document.getElementById("data").textContent);
if (embedded === null) poll();
else showRun(embedded);
