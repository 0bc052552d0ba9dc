// The tree of one task: a lane per trajectory, branch points where they happened, rewards at leaves.

const LANE = 30, LEFT = 104, RIGHT = 150, TOP = 24;

function inOrder(tree) {
  // Roots, each followed by its branches, those that leave early first.
  const found = [];
  const visit = (one, depth) => {
    found.push({ one, depth });
    [...one.branches].sort((a, b) => a.position - b.position).forEach((b) => visit(b, depth + 1));
  };
  tree.trajectories.filter((one) => !one.source).forEach((one) => visit(one, 0));
  return found;
}

function drawTree(tree, chosen, mode, scale, choose) {
  const lanes = inOrder(tree);
  const longest = Math.max(1, ...tree.trajectories.map((one) => one.tokens.length));
  const width = Math.max(560, document.getElementById("tree").clientWidth || 900);
  const unit = (width - LEFT - RIGHT) / longest, x = (position) => LEFT + position * unit;
  const y = new Map(lanes.map((lane, row) => [lane.one, TOP + row * LANE + LANE / 2]));
  const height = TOP + lanes.length * LANE + 6;
  const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Rollout tree" });
  const step = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((s) => longest / s <= 8) || 10000;
  for (let at = 0; at <= longest; at += step)
    svg.append(element("g", { class: "axis" },
      element("line", { x1: x(at), x2: x(at), y1: TOP - 4, y2: height }),
      element("text", { x: x(at), y: 12, "text-anchor": "middle" }, at === 0 ? "token 0" : at)));
  for (const { one } of lanes) if (one.source) svg.append(connector(one, x, y));
  for (const { one, depth } of lanes) svg.append(lane(one, depth, one.index === chosen, x, y.get(one), unit, mode, scale, choose));
  for (const { one } of lanes) if (one.source) svg.append(diamond(one, x, y, choose));
  return svg;
}

function connector(one, x, y) {
  const from = y.get(one.source), to = y.get(one), at = x(one.shared);
  return element("path", { class: `connector ${changed(one.gain).kind}`, d: `M${at} ${from} C${at} ${to - 8} ${at} ${to} ${at + 9} ${to}` });
}

function diamond(one, x, y, choose) {
  const at = x(one.shared), from = y.get(one.source), kind = changed(one.gain).kind;
  const made = element("path", { class: `diamond ${kind}`, d: `M${at} ${from - 7} l6 7 l-6 7 l-6 -7 z`, onclick: () => choose(one.index) });
  made.append(element("title", {}, `branch point at token ${one.shared}: reward ${number(one.source.reward)} → ${number(one.reward)}`));
  return made;
}

function lane(one, depth, chosen, x, middle, unit, mode, scale, choose) {
  const end = x(one.tokens.length), result = verdict(one.reward), gain = changed(one.gain);
  const told = `${nameOf(one)}: reward ${number(one.reward)}, ${result.told}` +
    (one.source ? `, left at token ${one.shared}, ${signed(one.gain)} against its parent` : "");
  const made = element("g", { class: `lane${chosen ? " chosen" : ""}`, tabindex: 0, role: "button", "aria-pressed": chosen, "aria-label": told, "data-index": one.index,
    onclick: () => choose(one.index), onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(one.index); } } });
  made.append(element("rect", { class: "hit", x: 0, y: middle - LANE / 2 + 1, width: end + RIGHT, height: LANE - 2, rx: 5 }));
  made.append(element("text", { class: "name", x: 8 + 12 * Math.min(depth, 3), y: middle + 4 }, one.source ? `↳ at ${one.shared}` : nameOf(one)));
  made.append(element("rect", { class: "trunk", x: x(one.shared), y: middle - 7, width: Math.max(end - x(one.shared), 2), height: 14, rx: 3 }));
  cells(one, x, middle, unit, mode, scale).forEach((cell) => made.append(cell));
  for (const turn of one.turns)
    if (turn.end > turn.action_end && turn.end > one.shared) {
      const tool = element("rect", { class: "tool", x: x(turn.action_end), y: middle - 2, width: Math.max((turn.end - turn.action_end) * unit, 2), height: 4, rx: 2 });
      tool.append(element("title", {}, `${turn.tool || "note"}: ${turn.end - turn.action_end} tokens of result`));
      made.append(tool);
    }
  if (one.source && one.parting > one.shared && one.parting < one.tokens.length) {
    const tick = element("rect", { class: "parted", x: x(one.parting) - 1, y: middle - 10, width: 3, height: 20 });
    tick.append(element("title", {}, `here, at token ${one.parting}, it parts from its parent`));
    made.append(tick);
  }
  const leaf = element("text", { class: `leaf ${result.kind}`, x: end + 8, y: middle + 5 }, `${result.mark} ${number(one.reward)}`);
  made.append(leaf);
  if (one.source) made.append(element("text", { class: `gain ${gain.kind}`, x: end + 68, y: middle + 5 }, `${gain.mark} ${gain.kind === "even" ? "no change" : signed(one.gain)}`));
  return made;
}

function cells(one, x, middle, unit, mode, scale) {
  // Tokens narrower than two pixels share a cell, which shows the strongest of them.
  const values = one[mode], found = [], size = Math.max(1, Math.ceil(2 / unit));
  const zero = MODES.find((m) => m.key === mode).middle || 0;
  for (let i = one.shared; i < one.tokens.length; i += size) {
    let strongest = null, any = false;
    for (let j = i; j < Math.min(i + size, one.tokens.length); j++) {
      if (!one.own[j]) continue;
      any = true;
      const value = values ? values[j] : null;
      if (value !== null && (strongest === null || Math.abs(value - zero) > Math.abs(strongest - zero))) strongest = value;
    }
    if (!any) continue;
    const cell = element("rect", { class: "cell", x: x(i), y: middle - 7, width: Math.max(unit * size, 1), height: 14 });
    const fill = colour(strongest, mode, scale);
    if (fill) cell.style.fill = fill;
    found.push(cell);
  }
  return found;
}

function drawList(trees, chosen, sort, query, choose) {
  const order = trees.map((tree, index) => ({ tree, index }));
  if (sort === "decisions") order.sort((a, b) => b.tree.telling - a.tree.telling || b.tree.scored - a.tree.scored || a.index - b.index);
  if (sort === "reward") order.sort((a, b) => a.tree.mean - b.tree.mean || a.index - b.index);
  const wanted = query.toLowerCase();
  const fitting = order.filter(({ tree }) => `${tree.task} ${tree.question || ""}`.toLowerCase().includes(wanted));
  return { order: fitting.map((item) => item.index), nodes: fitting.map(({ tree, index }) => listItem(tree, index, index === chosen, choose)) };
}

function listItem(tree, index, chosen, choose) {
  const dot = (one) => element("span", { class: `dot ${verdict(one.reward).kind}`, title: `${nameOf(one)}: ${number(one.reward)}` }, verdict(one.reward).mark);
  const branches = tree.trajectories.filter((one) => one.source);
  const leaves = [tree.trajectories.filter((one) => !one.source).map(dot), branches.length ? element("span", { class: "even" }, " ◆ ") : null, branches.map(dot)];
  const meant = branches.length ? "largest difference between a branch's reward and its parent's" : "largest difference in mean reward between ways that rollouts took";
  const mattered = tree.telling > 0 ? element("span", { class: "mattered", title: meant }, `Δ ${number(tree.telling, 2)}`) : null;
  return element("button", { class: `item${chosen ? " chosen" : ""}`, "aria-current": chosen ? "true" : null, "data-tree": index, onclick: () => choose(index) },
    element("span", { class: "words" }, tree.question === null ? `${tree.task} (text withheld)` : tree.question),
    element("span", { class: "leaves" }, leaves, mattered, tree.unavailable ? element("span", { class: "bad" }, " tools failed") : null));
}
