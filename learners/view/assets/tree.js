// Draws the tree of one task (a lane per trajectory, branch points where they happened, rewards at
// the leaves) and the list of an iteration's tasks.

// In pixels.
const LANE = 30;
const LEFT = 104;
const RIGHT = 150;
const TOP = 24;

function orderLanes(tree) {
  // Roots, each followed by its branches, the earliest first.
  const lanes = [];
  const visit = (trajectory, depth) => {
    lanes.push({ trajectory, depth });
    [...trajectory.branches].sort((a, b) => a.position - b.position).forEach((branch) => visit(branch, depth + 1));
  };
  tree.trajectories.filter((trajectory) => !trajectory.source).forEach((root) => visit(root, 0));
  return lanes;
}

function drawTree(tree, chosen, mode, scale, choose) {
  const lanes = orderLanes(tree);
  const longest = Math.max(1, ...tree.trajectories.map((trajectory) => trajectory.tokens.length));
  const width = Math.max(560, document.getElementById("tree").clientWidth || 900);
  const unit = (width - LEFT - RIGHT) / longest;
  const height = TOP + lanes.length * LANE + 6;
  const middles = new Map(lanes.map((lane, row) => [lane.trajectory, TOP + row * LANE + LANE / 2]));
  const plot = {
    unit,
    mode,
    scale,
    choose,
    x: (position) => LEFT + position * unit,
    y: (trajectory) => middles.get(trajectory),
  };
  const svg = element("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "group",
    "aria-label": "Rollout tree",
  });
  svg.append(...drawAxis(longest, height, plot));
  const branches = lanes.map((lane) => lane.trajectory).filter((trajectory) => trajectory.source);
  // In this order: lanes cover connectors, branch points cover lanes.
  svg.append(...branches.map((branch) => drawConnector(branch, plot)));
  svg.append(...lanes.map(({ trajectory, depth }) => drawLane(trajectory, depth, trajectory.index === chosen, plot)));
  svg.append(...branches.map((branch) => drawBranchPoint(branch, plot)));
  return svg;
}

function drawAxis(longest, height, { x }) {
  const step = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((size) => longest / size <= 8) || 10000;
  const ticks = [];
  for (let position = 0; position <= longest; position += step)
    ticks.push(
      element(
        "g",
        { class: "axis" },
        element("line", { x1: x(position), x2: x(position), y1: TOP - 4, y2: height }),
        element("text", { x: x(position), y: 12, "text-anchor": "middle" }, position === 0 ? "token 0" : position),
      ),
    );
  return ticks;
}

function drawConnector(branch, { x, y }) {
  const from = y(branch.source);
  const to = y(branch);
  const left = x(branch.shared);
  return element("path", {
    class: `connector ${changeOf(branch.gain).kind}`,
    d: `M${left} ${from} C${left} ${to - 8} ${left} ${to} ${left + 9} ${to}`,
  });
}

function drawBranchPoint(branch, { x, y, choose }) {
  const { source, shared, reward, gain, index } = branch;
  return element(
    "path",
    {
      class: `diamond ${changeOf(gain).kind}`,
      d: `M${x(shared)} ${y(source) - 7} l6 7 l-6 7 l-6 -7 z`,
      onclick: () => choose(index),
    },
    element(
      "title",
      {},
      `branch point at token ${shared}: reward ${formatNumber(source.reward)} → ${formatNumber(reward)}`,
    ),
  );
}

function drawLane(trajectory, depth, chosen, plot) {
  const { x, y, choose } = plot;
  const { index, source, shared, gain, reward } = trajectory;
  const middle = y(trajectory);
  const end = x(trajectory.tokens.length);
  const verdict = verdictOf(reward);
  const change = changeOf(gain);
  const label =
    `${nameOf(trajectory)}: reward ${formatNumber(reward)}, ${verdict.label}` +
    (source ? `, branches at token ${shared}, ${formatSigned(gain)} against its parent` : "");
  const chooseByKey = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(index);
  };
  return element(
    "g",
    {
      class: `lane${chosen ? " chosen" : ""}`,
      tabindex: 0,
      role: "button",
      "aria-pressed": chosen,
      "aria-label": label,
      "data-index": index,
      onclick: () => choose(index),
      onkeydown: chooseByKey,
    },
    element("rect", { class: "hit", x: 0, y: middle - LANE / 2 + 1, width: end + RIGHT, height: LANE - 2, rx: 5 }),
    element(
      "text",
      { class: "name", x: 8 + 12 * Math.min(depth, 3), y: middle + 4 },
      source ? `↳ at ${shared}` : nameOf(trajectory),
    ),
    element("rect", {
      class: "trunk",
      x: x(shared),
      y: middle - 7,
      width: Math.max(end - x(shared), 2),
      height: 14,
      rx: 3,
    }),
    drawCells(trajectory, middle, plot),
    drawToolResults(trajectory, middle, plot),
    drawDivergence(trajectory, middle, plot),
    element(
      "text",
      { class: `leaf ${verdict.kind}`, x: end + 8, y: middle + 5 },
      `${verdict.mark} ${formatNumber(reward)}`,
    ),
    source
      ? element(
          "text",
          { class: `gain ${change.kind}`, x: end + 68, y: middle + 5 },
          `${change.mark} ${change.kind === "even" ? "no change" : formatSigned(gain)}`,
        )
      : null,
  );
}

function drawCells(trajectory, middle, { x, unit, mode, scale }) {
  // Tokens narrower than two pixels share a cell, which shows the value farthest from the middle.
  const values = trajectory[mode];
  const cells = [];
  const size = Math.max(1, Math.ceil(2 / unit));
  const length = trajectory.tokens.length;
  const neutral = middleOf(mode) || 0;
  for (let start = trajectory.shared; start < length; start += size) {
    let strongest = null;
    let sampled = false;
    for (let i = start; i < Math.min(start + size, length); i++) {
      if (!trajectory.sampled[i]) continue;
      sampled = true;
      const value = values ? values[i] : null;
      if (value !== null && (strongest === null || Math.abs(value - neutral) > Math.abs(strongest - neutral)))
        strongest = value;
    }
    if (!sampled) continue;
    const cell = element("rect", {
      class: "cell",
      x: x(start),
      y: middle - 7,
      width: Math.max(unit * size, 1),
      height: 14,
    });
    const fill = colour(strongest, mode, scale);
    if (fill) cell.style.fill = fill;
    cells.push(cell);
  }
  return cells;
}

function drawToolResults(trajectory, middle, { x, unit }) {
  return trajectory.turns
    .filter((turn) => turn.end > turn.action_end && turn.end > trajectory.shared)
    .map((turn) => {
      const tokens = turn.end - turn.action_end;
      return element(
        "rect",
        { class: "tool", x: x(turn.action_end), y: middle - 2, width: Math.max(tokens * unit, 2), height: 4, rx: 2 },
        element("title", {}, `${turn.tool || "note"}: result of ${tokens} tokens`),
      );
    });
}

function drawDivergence({ source, shared, divergence, tokens }, middle, { x }) {
  // Only if the branch repeats some of its parent's tokens first.
  if (!source || divergence === shared || divergence === tokens.length) return null;
  return element(
    "rect",
    { class: "divergence", x: x(divergence) - 1, y: middle - 10, width: 3, height: 20 },
    element("title", {}, `diverges from its parent at token ${divergence}`),
  );
}

function drawList(trees, chosen, sort, query, choose) {
  const items = trees.map((tree, index) => ({ tree, index }));
  if (sort === "decisions")
    items.sort((a, b) => b.tree.effect - a.tree.effect || b.tree.scored - a.tree.scored || a.index - b.index);
  if (sort === "reward") items.sort((a, b) => a.tree.meanReward - b.tree.meanReward || a.index - b.index);
  const words = query.toLowerCase();
  const matches = items.filter(({ tree }) => `${tree.task} ${tree.question || ""}`.toLowerCase().includes(words));
  return {
    order: matches.map((item) => item.index),
    nodes: matches.map(({ tree, index }) => drawListItem(tree, index, index === chosen, choose)),
  };
}

function drawListItem(tree, index, chosen, choose) {
  const dot = (trajectory) => {
    const { kind, mark } = verdictOf(trajectory.reward);
    return element(
      "span",
      { class: `dot ${kind}`, title: `${nameOf(trajectory)}: ${formatNumber(trajectory.reward)}` },
      mark,
    );
  };
  const roots = tree.trajectories.filter((trajectory) => !trajectory.source);
  const branches = tree.trajectories.filter((trajectory) => trajectory.source);
  const meaning = branches.length
    ? "largest difference between the rewards of a branch and its parent"
    : "largest difference between the mean rewards of continuations of one prefix";
  return element(
    "button",
    {
      class: `item${chosen ? " chosen" : ""}`,
      "aria-current": chosen ? "true" : null,
      "data-tree": index,
      onclick: () => choose(index),
    },
    element("span", { class: "words" }, tree.question === null ? `${tree.task} (text withheld)` : tree.question),
    element(
      "span",
      { class: "leaves" },
      roots.map(dot),
      branches.length ? element("span", { class: "even" }, " ◆ ") : null,
      branches.map(dot),
      tree.effect > 0
        ? element("span", { class: "effect", title: meaning }, `Δ ${formatNumber(tree.effect, 2)}`)
        : null,
      tree.unavailable ? element("span", { class: "bad" }, " tools failed") : null,
    ),
  );
}
