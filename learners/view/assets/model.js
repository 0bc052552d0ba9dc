// The page's model: whole trajectories from the stored data, values of tokens, colours, numbers.
// Text of a run enters the page through text nodes only, never as markup.

const MODES = [
  { key: "entropy", label: "Entropy", unit: "nats", middle: null },
  { key: "future", label: "Future value", unit: "", middle: 1 },
  { key: "branching", label: "Branching score", unit: "", middle: 0 },
  { key: "advantage", label: "Advantage", unit: "", middle: 0 },
  { key: "plain", label: "Plain", unit: "", middle: null },
];
// Why a mode may have no value.
const ABSENT = {
  future: "undefined: the policy had not been updated since this was sampled",
  branching: "undefined: the policy had not been updated since this was sampled, or the method has no score",
  advantage: "no advantage: all rewards of the group were equal, or the method does not train this trajectory",
};
// Okabe and Ito's blue, vermilion and purple: distinct for all common kinds of colour vision.
const UP = "0,114,178";
const DOWN = "213,94,0";
const PURPLE = "136,84,178";
const SVG_TAGS = ["svg", "g", "rect", "path", "text", "circle", "line", "title", "polyline"];

function element(tag, attributes, ...children) {
  const node = SVG_TAGS.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    // aria-* attributes need the words "true" and "false"; others are there or not.
    if (value === null || value === undefined || (value === false && !name.startsWith("aria"))) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true && !name.startsWith("aria") ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function replace(id, ...children) {
  document.getElementById(id).replaceChildren(...children.flat(Infinity).filter((child) => child !== null));
}

function expandTree(tree) {
  // Builds whole trajectories from what each wrote itself. A parent comes before its branches.
  for (const [index, trajectory] of tree.trajectories.entries()) {
    const parent = trajectory.parent === null ? null : tree.trajectories[trajectory.parent];
    expandTrajectory(trajectory, index, parent);
  }
  const { trajectories } = tree;
  tree.rewards = trajectories.map((trajectory) => trajectory.reward);
  tree.meanReward = tree.rewards.reduce((a, b) => a + b, 0) / Math.max(tree.rewards.length, 1);
  tree.largestGain = Math.max(0, ...trajectories.map((trajectory) => Math.abs(trajectory.gain)));
  tree.divergences = findDivergences(tree);
  const unbranched = trajectories.every((trajectory) => !trajectory.source);
  // The largest difference that a decision made to a reward.
  tree.effect = tree.largestGain || (unbranched && tree.divergences.length ? tree.divergences[0].gap : 0);
  tree.scored = trajectories.some((trajectory) => trajectory.branching);
}

function expandTrajectory(trajectory, index, source) {
  const shared = source ? trajectory.position : 0;
  Object.assign(trajectory, { index, source, shared, branches: [] });
  if (source) source.branches.push(trajectory);
  trajectory.tokens = (source ? source.tokens.slice(0, shared) : []).concat(trajectory.tokens);
  const length = trajectory.tokens.length;
  for (const key of ["entropy", "logprob", "future", "branching"])
    trajectory[key] = unpack(trajectory[key], shared, length, source && source[key]);
  trajectory.advantage = unpack(trajectory.advantage, 0, length, null);
  trajectory.sampled = new Array(length).fill(true);
  for (const turn of trajectory.turns) trajectory.sampled.fill(false, turn.action_end, turn.end);
  trajectory.divergence = findDivergence(trajectory);
  trajectory.gain = source ? trajectory.reward - source.reward : 0;
}

function unpack(packed, shared, length, parentValues) {
  // Values of all tokens. One number stands for all of a trajectory's own, null for none; shared
  // tokens have the parent's values.
  if (packed === null || packed === undefined) return null;
  const own = Array.isArray(packed) ? packed : new Array(length - shared).fill(packed);
  return (parentValues ? parentValues.slice(0, shared) : new Array(shared).fill(null)).concat(own);
}

function findDivergence(branch) {
  // The first token that differs from the parent's: a branch may sample its parent's token again.
  if (!branch.source) return null;
  const tokens = branch.tokens;
  const parentTokens = branch.source.tokens;
  let position = branch.shared;
  while (position < tokens.length && position < parentTokens.length && tokens[position] === parentTokens[position])
    position++;
  return position;
}

function isRepetition(branch) {
  return branch.divergence === branch.tokens.length && branch.divergence === branch.source.tokens.length;
}

function nameOf(trajectory) {
  return trajectory.source ? `branch ${trajectory.path.join("·")}` : `root ${trajectory.path[0]}`;
}

function middleOf(mode) {
  return MODES.find((candidate) => candidate.key === mode).middle;
}

function scaleOf(trees, mode) {
  // The distance from the middle that gets the full colour: the 99th percentile of the iteration,
  // so that single outliers do not make all other tokens pale.
  const middle = middleOf(mode) || 0;
  const distances = [];
  for (const tree of trees)
    for (const trajectory of tree.trajectories) {
      const values = trajectory[mode];
      if (!values) continue;
      for (let i = trajectory.shared; i < values.length; i++)
        if (trajectory.sampled[i] && values[i] !== null) distances.push(Math.abs(values[i] - middle));
    }
  if (!distances.length) return null;
  distances.sort((a, b) => a - b);
  return Math.max(distances[Math.floor(0.99 * (distances.length - 1))], 1e-9);
}

function colour(value, mode, scale) {
  if (value === null || value === undefined || !scale || mode === "plain") return null;
  const middle = middleOf(mode);
  const distance = Math.min(Math.abs(value - (middle || 0)) / scale, 1);
  if (distance < 0.02) return null;
  const hue = middle === null ? PURPLE : value >= middle ? UP : DOWN;
  return `rgba(${hue},${(0.08 + 0.62 * distance).toFixed(2)})`;
}

function formatNumber(value, digits) {
  return formatPlain(value, digits).replace(/^-/, "−");
}

function formatPlain(value, digits) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 1e6)
    return value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 4 });
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const fixed = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toFixed(digits === undefined ? 3 : digits);
  return fixed.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function formatSigned(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "±") + formatNumber(Math.abs(value));
}

function formatCount(count, singular, plural) {
  return `${count} ${count === 1 ? singular : plural}`;
}

function verdictOf(reward) {
  // A mark for each colour: the page must be readable without colours.
  if (reward >= 1) return { mark: "✓", kind: "good", label: "right" };
  if (reward > 0) return { mark: "◐", kind: "partly", label: "partly right" };
  return reward < 0 ? { mark: "⊘", kind: "bad", label: "penalised" } : { mark: "✗", kind: "bad", label: "wrong" };
}

function changeOf(gain) {
  return gain > 0 ? { mark: "▲", kind: "good" } : gain < 0 ? { mark: "▼", kind: "bad" } : { mark: "=", kind: "even" };
}

function showSpaces(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
