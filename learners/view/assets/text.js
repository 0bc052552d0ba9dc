// Draws a trajectory's text: tokens in their colours, tool results folded, branch points marked; a
// branch next to its parent. Long texts are coloured in pieces, as they come into sight.

// In tokens.
const PIECE = 200;

const painter = new IntersectionObserver(
  (entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        painter.unobserve(entry.target);
        entry.target.paint();
      }
  },
  { rootMargin: "600px" },
);

function drawText(tree, chosen, mode, scale, choose) {
  const trajectory = tree.trajectories[chosen];
  if (!trajectory) return [];
  const context = { mode, scale, choose, decision: null };
  if (!trajectory.source)
    return [drawHeading(trajectory), drawTokens(trajectory, 0, trajectory.tokens.length, context)];
  return drawBranch(trajectory, context);
}

function drawBranch(branch, context) {
  const { source, shared } = branch;
  const marked = { ...context, decision: branch.divergence };
  const prefix = element(
    "details",
    { class: "shared" },
    element(
      "summary",
      {},
      `${shared} tokens shared with ${nameOf(source)}: … `,
      element("span", { class: "tail" }, textBefore(branch, shared)),
    ),
    drawTokens(branch, 0, shared, context),
  );
  return [
    drawHeading(branch),
    branch.divergence > shared ? element("p", { class: "absent" }, describeRepetition(branch)) : null,
    shared > 0
      ? prefix
      : element("p", { class: "facts" }, "This branch starts at the prompt: it shares no token of the response."),
    element(
      "div",
      { class: "columns" },
      element(
        "div",
        { class: "column" },
        drawHeading(source, `parent (${nameOf(source)}) continues`),
        drawTokens(source, shared, source.tokens.length, marked),
      ),
      element(
        "div",
        { class: "column" },
        drawHeading(branch, "this branch continues"),
        drawTokens(branch, shared, branch.tokens.length, marked),
      ),
    ),
  ];
}

function drawHeading(trajectory, title) {
  const verdict = verdictOf(trajectory.reward);
  const change = changeOf(trajectory.gain);
  const calls = trajectory.turns.filter((turn) => turn.tool).length;
  const terms = Object.entries(trajectory.terms)
    .map(([name, value]) => `${name} ${formatNumber(value)}`)
    .join(", ");
  const gain = trajectory.gain
    ? `${change.mark} ${formatSigned(trajectory.gain)} against its parent`
    : "= same as its parent";
  const facts = [
    trajectory.done ? trajectory.stop : "not finished",
    terms,
    `${trajectory.tokens.length} tokens`,
    formatCount(calls, "call", "calls"),
  ];
  return element(
    "div",
    { class: "heading" },
    element("b", {}, title || nameOf(trajectory)),
    element("span", { class: `reward ${verdict.kind}` }, `${verdict.mark} reward ${formatNumber(trajectory.reward)}`),
    trajectory.source && !title ? element("span", { class: `reward ${change.kind}` }, gain) : null,
    element("span", { class: "facts" }, facts.filter(Boolean).join(" · ")),
  );
}

function drawTokens(trajectory, start, end, context) {
  // Sampled tokens in pieces, tool results folded.
  const nodes = [];
  const addPieces = (from, to) => {
    for (let i = from; i < to; i += PIECE) nodes.push(drawPiece(trajectory, i, Math.min(i + PIECE, to), context));
  };
  let position = start;
  for (const [index, turn] of trajectory.turns.entries()) {
    if (turn.end <= start || turn.begin >= end) continue;
    addPieces(Math.max(turn.begin, start), Math.min(turn.action_end, end));
    if (turn.end > turn.action_end)
      nodes.push(drawToolResult(trajectory, turn, index, Math.max(turn.action_end, start), Math.min(turn.end, end)));
    position = Math.min(turn.end, end);
  }
  addPieces(position, end); // a turn that has not ended
  return element("div", { class: "response" }, nodes);
}

function drawPiece(trajectory, start, end, context) {
  // One node of plain text until it is near the window; then a span for every token.
  const node = element("span", { class: "piece" }, trajectory.tokens.slice(start, end).join(""));
  node.paint = () => {
    const branches = new Map();
    for (const branch of trajectory.branches)
      branches.set(branch.position, [...(branches.get(branch.position) || []), branch]);
    const parts = [];
    for (let i = start; i < end; i++) {
      if (branches.has(i)) parts.push(drawMarker(trajectory, i, branches.get(i), context));
      parts.push(drawToken(trajectory, i, context));
    }
    node.replaceChildren(...parts);
  };
  painter.observe(node);
  return node;
}

function drawToken(trajectory, i, { mode, scale, decision }) {
  const node = element(
    "span",
    { class: i === decision ? "t decision" : "t", "data-trajectory": trajectory.index, "data-i": i },
    trajectory.tokens[i],
  );
  const fill = trajectory[mode] ? colour(trajectory[mode][i], mode, scale) : null;
  if (fill) node.style.backgroundColor = fill;
  return node;
}

function drawMarker(trajectory, position, branches, { choose }) {
  const rewards = branches.map((branch) => formatNumber(branch.reward)).join(", ");
  const count = formatCount(branches.length, "branch", "branches");
  const best = strongestBranch(branches);
  return element(
    "button",
    {
      class: `marker ${changeOf(best.gain).kind}`,
      title: `${count} here with reward ${rewards}; this trajectory has ${formatNumber(trajectory.reward)}`,
      "aria-label": `branch point at token ${position}`,
      onclick: () => choose(best.index),
    },
    `◆${branches.length > 1 ? branches.length : ""}`,
  );
}

function drawToolResult(trajectory, turn, index, start, end) {
  const name = turn.tool ? `${turn.tool}${turn.ok ? "" : " (failed)"}` : "note";
  const argument = turn.argument ? ` “${shorten(turn.argument, 60)}”` : "";
  const facts = [`${turn.end - turn.action_end} tokens`];
  if (turn.seconds !== null) facts.push(turn.seconds < 0.001 ? "< 1 ms" : `${formatNumber(turn.seconds)} s`);
  if (trajectory.source && turn.end <= trajectory.shared) facts.push("inherited");
  return element(
    "details",
    { class: "call", "data-turn": index },
    element(
      "summary",
      {},
      element("b", {}, name),
      argument,
      element("span", { class: "facts" }, " → ", facts.join(" · ")),
    ),
    element("div", { class: "result" }, trajectory.tokens.slice(start, end).join("").trim()),
  );
}

function describeRepetition(branch) {
  if (isRepetition(branch)) return "This branch sampled the same tokens as its parent.";
  const { shared, divergence } = branch;
  return `This branch repeats ${divergence - shared} of its parent’s tokens and diverges at token ${divergence}.`;
}

function textBefore(trajectory, position) {
  const text = trajectory.tokens
    .slice(Math.max(0, position - 30), position)
    .join("")
    .replace(/\s+/g, " ");
  return text.slice(-90);
}

function shorten(text, length) {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
