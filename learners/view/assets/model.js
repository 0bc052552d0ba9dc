// What the page shows: trees with whole trajectories, values of tokens, colours.
// Text of a run enters the page through textContent alone.

const MODES = [
  { key: "entropy", label: "Entropy", unit: "nats", middle: null },
  { key: "future", label: "Future value", unit: "", middle: 1 },
  { key: "branching", label: "Branching score", unit: "", middle: 0 },
  { key: "advantage", label: "Advantage", unit: "", middle: 0 },
  { key: "plain", label: "Plain", unit: "", middle: null },
];
const ABSENT = {
  future: "undefined here: the policy had not moved since this was sampled",
  branching: "undefined here: the policy had not moved since this was sampled, or the method has no score",
  advantage: "no credit: rewards of the group were equal, or the method does not train this trajectory",
};
// Okabe and Ito's blue, vermilion and purple: told apart by all common kinds of colour vision.
const UP = "0,114,178", DOWN = "213,94,0", PURPLE = "136,84,178";

function element(tag, attributes, ...children) {
  const svg = ["svg", "g", "rect", "path", "text", "circle", "line", "title", "polyline"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria"))) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true && !name.startsWith("aria") ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    made.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return made;
}

function replace(id, ...children) {
  document.getElementById(id).replaceChildren(...children.flat(Infinity).filter((c) => c !== null));
}

function spread(packed, shared, length, before) {
  // One number stands for all; null for none. What is shared is the parent's.
  if (packed === null || packed === undefined) return null;
  const own = Array.isArray(packed) ? packed : new Array(length - shared).fill(packed);
  return (before ? before.slice(0, shared) : new Array(shared).fill(null)).concat(own);
}

function expand(tree) {
  // Whole trajectories from what each wrote itself; a parent comes before its branches.
  for (const [index, one] of tree.trajectories.entries()) {
    const source = one.parent === null ? null : tree.trajectories[one.parent];
    const shared = one.parent === null ? 0 : one.position;
    one.index = index;
    one.shared = shared;
    one.source = source;
    one.branches = [];
    if (source) source.branches.push(one);
    one.tokens = (source ? source.tokens.slice(0, shared) : []).concat(one.tokens);
    const length = one.tokens.length;
    for (const key of ["entropy", "logprob", "future", "branching"])
      one[key] = spread(one[key], shared, length, source && source[key]);
    one.advantage = Array.isArray(one.advantage) || one.advantage === null ? one.advantage
      : new Array(length).fill(one.advantage);
    one.own = new Array(length).fill(true);
    for (const turn of one.turns) one.own.fill(false, turn.action_end, turn.end);
    one.parting = parting(one);
    one.gain = source ? one.reward - source.reward : 0;
  }
  tree.rewards = tree.trajectories.map((one) => one.reward);
  tree.largest = Math.max(0, ...tree.trajectories.map((one) => Math.abs(one.gain)));
  tree.parted = partings(tree);
  tree.telling = tree.largest || (tree.parted.length && tree.trajectories.every((one) => !one.source) ? tree.parted[0].gap : 0);
  tree.scored = tree.trajectories.some((one) => one.branching);
  tree.mean = tree.rewards.reduce((a, b) => a + b, 0) / Math.max(tree.rewards.length, 1);
}

function parting(one) {
  // The first token that is not the parent's: a branch may sample its parent's token again.
  if (!one.source) return null;
  let at = one.shared;
  while (at < one.tokens.length && at < one.source.tokens.length && one.tokens[at] === one.source.tokens[at]) at++;
  return at;
}

function nameOf(one) {
  return one.source ? `branch ${one.path.join("·")}` : `root ${one.path[0]}`;
}

function scaleOf(trees, mode) {
  // The largest distance from the middle that a mode shows: its 99th percentile in the iteration.
  const middle = MODES.find((m) => m.key === mode).middle || 0, found = [];
  for (const tree of trees)
    for (const one of tree.trajectories) {
      const values = one[mode];
      if (!values) continue;
      for (let i = one.shared; i < values.length; i++)
        if (one.own[i] && values[i] !== null) found.push(Math.abs(values[i] - middle));
    }
  if (!found.length) return null;
  found.sort((a, b) => a - b);
  return Math.max(found[Math.floor(0.99 * (found.length - 1))], 1e-9);
}

function colour(value, mode, scale) {
  if (value === null || value === undefined || !scale || mode === "plain") return null;
  const middle = MODES.find((m) => m.key === mode).middle;
  const distance = Math.min(Math.abs(value - (middle || 0)) / scale, 1);
  if (distance < 0.02) return null;
  const hue = middle === null ? PURPLE : value >= middle ? UP : DOWN;
  return `rgba(${hue},${(0.08 + 0.62 * distance).toFixed(2)})`;
}

function number(value, digits) {
  return plain(value, digits).replace(/^-/, "−");
}

function plain(value, digits) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 1e6) return value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 4 });
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const fixed = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toFixed(digits === undefined ? 3 : digits);
  return fixed.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "±") + number(Math.abs(value));
}

function verdict(reward) {
  // A mark beside the colour: colour alone tells nobody anything.
  if (reward >= 1) return { mark: "✓", kind: "good", told: "right" };
  if (reward > 0) return { mark: "◐", kind: "partly", told: "partly right" };
  return reward < 0 ? { mark: "⊘", kind: "bad", told: "no answer" } : { mark: "✗", kind: "bad", told: "wrong" };
}

function changed(gain) {
  return gain > 0 ? { mark: "▲", kind: "good" } : gain < 0 ? { mark: "▼", kind: "bad" } : { mark: "=", kind: "even" };
}

function visible(text) {
  return text === "" ? "" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
