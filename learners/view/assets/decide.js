// Answers where the agent decided, and what each decision earned. Branch points are decisions that
// were sampled again on purpose; initial rollouts that diverge on their own show decisions too.

const MAX_DIVERGENCES = 8;

function findDivergences(tree) {
  // Where initial rollouts with a common prefix continue differently, the largest gap in mean
  // reward first.
  const divergences = [];
  const walk = (group, start) => {
    for (let position = start; group.length > 1; position++) {
      const continuations = new Map();
      for (const rollout of group) {
        const token = position < rollout.tokens.length ? rollout.tokens[position] : null;
        continuations.set(token, [...(continuations.get(token) || []), rollout]);
      }
      if (continuations.size === 1 && continuations.has(null)) return;
      if (continuations.size === 1) continue;
      divergences.push(describeDivergence(position, group[0], [...continuations.values()]));
      for (const [token, rollouts] of continuations) if (token !== null) walk(rollouts, position + 1);
      return;
    }
  };
  walk(
    tree.trajectories.filter((trajectory) => !trajectory.source),
    0,
  );
  return divergences.sort((a, b) => b.gap - a.gap || b.sides[0].rollouts.length - a.sides[0].rollouts.length);
}

function describeDivergence(position, source, groups) {
  const sides = groups
    .sort((a, b) => b.length - a.length)
    .map((rollouts) => ({ rollouts, mean: meanReward(rollouts) }));
  const means = sides.map((side) => side.mean);
  return { position, source, sides, gap: Math.max(...means) - Math.min(...means) };
}

function meanReward(trajectories) {
  return trajectories.reduce((sum, trajectory) => sum + trajectory.reward, 0) / trajectories.length;
}

function summarize(tree) {
  // The tree in a sentence or two.
  const branches = tree.trajectories.filter((trajectory) => trajectory.source);
  const low = Math.min(...tree.rewards);
  const high = Math.max(...tree.rewards);
  const equal = low === high ? `All rewards are ${formatNumber(low)}, so they do not tell decisions apart.` : null;
  if (branches.length) return [summarizeBranches(branches), equal].filter(Boolean).join(" ");
  const range = `Rewards from ${formatNumber(low)} to ${formatNumber(high)}.`;
  return `${tree.trajectories.length} rollouts, no branches. ${equal || range + summarizeDivergence(tree.divergences[0])}`;
}

function summarizeDivergence(divergence) {
  if (!divergence || !divergence.gap) return "";
  const { position, sides } = divergence;
  const earned = sides
    .slice(0, 3)
    .map(({ rollouts, mean }) => `“${textAt(rollouts[0], position).trim()}” earned ${formatNumber(mean, 2)}`);
  return ` Largest difference: token ${position}, where ${earned.join(", ")}${sides.length > 3 ? ", …" : ""} on average.`;
}

function summarizeBranches(branches) {
  const points = new Set(branches.map((branch) => `${branch.source.index}/${branch.shared}`)).size;
  const count = (fits) => branches.filter(fits).length;
  const outcomes = [
    [count((branch) => branch.gain > 0), "better than the parent"],
    [count((branch) => branch.gain < 0), "worse than the parent"],
    [count((branch) => !branch.gain && !isRepetition(branch)), "with different text but the same reward"],
    [count((branch) => !branch.gain && isRepetition(branch)), "identical to the parent"],
  ];
  const counted = outcomes
    .filter(([n]) => n)
    .map(([n, outcome]) => `${n} ${outcome}`)
    .join(", ");
  const head = `${formatCount(branches.length, "branch", "branches")} at ${formatCount(points, "branch point", "branch points")}`;
  const best = strongestBranch(branches);
  if (!best.gain) return `${head}: ${counted}.`;
  const at = best.divergence;
  const earned = [best.source, best].map(
    (trajectory) => `“${textAt(trajectory, at).trim()}” earned ${formatNumber(trajectory.reward)}`,
  );
  const largest = `Largest difference: token ${at} of ${nameOf(best.source)}, where ${earned.join(", ")}.`;
  return `${head}: ${counted}. ${largest}`;
}

function strongestBranch(branches) {
  // The branch whose reward differs most from its parent's.
  return branches.reduce((a, b) => (Math.abs(b.gain) > Math.abs(a.gain) ? b : a));
}

function textAt(trajectory, position) {
  // The next few tokens that the trajectory sampled itself.
  let end = position;
  while (end < position + 3 && trajectory.sampled[end]) end++;
  const text = trajectory.tokens.slice(position, end).join("");
  return text.length > 28 ? shorten(text, 27) : text;
}

function drawDecisions(tree, chosen, choose) {
  const points = new Map();
  for (const trajectory of tree.trajectories)
    if (trajectory.source) {
      const key = `${trajectory.source.index}/${trajectory.shared}`;
      points.set(key, [...(points.get(key) || []), trajectory]);
    }
  const divergences = drawDivergences(tree, chosen, choose);
  if (!points.size) return divergences;
  const size = (group) => Math.abs(strongestBranch(group).gain);
  const rows = [...points.values()]
    .sort((a, b) => size(b) - size(a))
    .map((group) => drawBranchPointRow(group, chosen, choose));
  const heads = [
    "where",
    "parent wrote",
    "branches wrote",
    "entropy",
    "future value",
    "score",
    "parent’s reward",
    "branches’ reward",
  ];
  return [drawTable({}, "Where the agent decided, and what each decision earned", heads, rows), ...divergences];
}

function drawDivergences(tree, chosen, choose) {
  const rows = tree.divergences
    .filter((divergence) => divergence.gap > 0)
    .slice(0, MAX_DIVERGENCES)
    .map((divergence) => drawDivergenceRow(divergence, chosen, choose));
  if (!rows.length) return [];
  return [
    drawTable(
      { id: "divergences" },
      "Where initial rollouts diverged on their own",
      ["where", "after", "they wrote", "mean reward"],
      rows,
    ),
  ];
}

function drawTable(attributes, caption, heads, rows) {
  return element(
    "table",
    attributes,
    element("caption", {}, caption),
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        heads.map((text) => element("th", { scope: "col" }, text)),
      ),
    ),
    element("tbody", {}, rows),
  );
}

function drawBranchPointRow(branches, chosen, choose) {
  const { source, shared, score } = branches[0];
  const verdict = verdictOf(source.reward);
  const valueOf = (key) => formatNumber(source[key] ? source[key][shared] : null);
  const words = (trajectory, position) => element("code", {}, showSpaces(textAt(trajectory, position)) || "(nothing)");
  const button = (branch) => {
    const change = changeOf(branch.gain);
    return element(
      "button",
      {
        class: `pick ${change.kind}${branch.index === chosen ? " chosen" : ""}`,
        "data-pick": branch.index,
        onclick: () => choose(branch.index),
      },
      `${verdictOf(branch.reward).mark} ${formatNumber(branch.reward)}  `,
      `${change.mark}${branch.gain ? formatSigned(branch.gain) : ""}`,
    );
  };
  // Some rules score branch points only, not every token.
  const branchingScore = source.branching ? valueOf("branching") : score ? formatNumber(score) : "–";
  return element(
    "tr",
    {},
    element("td", {}, `${nameOf(source)}, token ${shared}`),
    element("td", {}, words(source, shared)),
    element(
      "td",
      {},
      branches.map((branch) =>
        element("div", {}, drawRepetition(branch), isRepetition(branch) ? null : words(branch, branch.divergence)),
      ),
    ),
    element("td", { class: "n" }, valueOf("entropy")),
    element("td", { class: "n" }, valueOf("future")),
    element("td", { class: "n" }, branchingScore),
    element("td", { class: `n ${verdict.kind}` }, `${verdict.mark} ${formatNumber(source.reward)}`),
    element("td", {}, branches.map(button)),
  );
}

function drawRepetition(branch) {
  if (branch.divergence === branch.shared) return null;
  return element(
    "span",
    { class: "facts" },
    isRepetition(branch) ? "the same" : `the same up to token ${branch.divergence}, then `,
  );
}

function drawDivergenceRow({ position, source, sides }, chosen, choose) {
  const button = ({ rollouts, mean }) => {
    const verdict = verdictOf(mean);
    const holdsChosen = rollouts.some((rollout) => rollout.index === chosen);
    return element(
      "div",
      {},
      element(
        "button",
        {
          class: `pick ${verdict.kind}${holdsChosen ? " chosen" : ""}`,
          "data-side": rollouts[0].index,
          title: rollouts.map(nameOf).join(", "),
          onclick: () => choose(rollouts[0].index),
        },
        `${verdict.mark} ${formatNumber(mean, 2)}`,
      ),
      element("span", { class: "facts" }, `${rollouts.length} ×`),
    );
  };
  const continuation = ({ rollouts }) =>
    element(
      "div",
      { class: "continuation" },
      element("code", {}, showSpaces(textAt(rollouts[0], position)) || "(end)"),
    );
  return element(
    "tr",
    {},
    element("td", {}, `token ${position}`),
    element("td", { class: "tail" }, `…${textBefore(source, position)}`),
    element("td", {}, sides.map(continuation)),
    element("td", {}, sides.map(button)),
  );
}
