// The page's answer: where this agent decided, and whether it was rewarded for it. Branch points are
// decisions that were tried again on purpose; where rollouts part by themselves is one too.

const MOST_PARTINGS = 8;

function partings(tree) {
  // Where initial rollouts that wrote the same so far go on differently, the most telling first.
  const found = [];
  const walk = (group, from) => {
    for (let at = from; group.length > 1; at++) {
      const ways = new Map();
      for (const one of group) {
        const next = at < one.tokens.length ? one.tokens[at] : null;
        ways.set(next, [...(ways.get(next) || []), one]);
      }
      if (ways.size === 1 && ways.has(null)) return;
      if (ways.size === 1) continue;
      const sides = [...ways.values()].sort((a, b) => b.length - a.length).map((ones) => ({ ones, mean: mean(ones) }));
      const means = sides.map((side) => side.mean);
      found.push({ at, source: group[0], sides, gap: Math.max(...means) - Math.min(...means) });
      for (const [next, ones] of ways) if (next !== null) walk(ones, at + 1);
      return;
    }
  };
  walk(tree.trajectories.filter((one) => !one.source), 0);
  return found.sort((a, b) => b.gap - a.gap || b.sides[0].ones.length - a.sides[0].ones.length);
}

function mean(ones) { return ones.reduce((sum, one) => sum + one.reward, 0) / ones.length; }

function summed(tree) {
  // The tree in a sentence or two.
  const branches = tree.trajectories.filter((one) => one.source), roots = tree.trajectories.length - branches.length;
  const least = Math.min(...tree.rewards), most = Math.max(...tree.rewards);
  const equal = least === most ? `All earned ${number(least)}: no decision here can be told from another by its reward.` : null;
  if (!branches.length) {
    const best = tree.parted[0];
    const side = ({ ones, mean }) => `“${wrote(ones[0], best.at).trim()}” earned ${number(mean, 2)}`;
    const parted = best && best.gap ? ` Most telling: token ${best.at}, where ${best.sides.slice(0, 3).map(side).join(", ")}${best.sides.length > 3 ? ", …" : ""} in the mean.` : "";
    return `${roots} rollouts, none branched. ${equal || `They earned ${number(least)} to ${number(most)}.${parted}`}`;
  }
  const places = new Set(branches.map((one) => `${one.source.index}/${one.shared}`)).size;
  const count = (fits) => branches.filter(fits).length;
  const told = [[count((one) => one.gain > 0), "did better than what they left"], [count((one) => one.gain < 0), "did worse"],
    [count((one) => !one.gain && !same(one)), "went another way to the same reward"], [count((one) => !one.gain && same(one)), "wrote the very same again"]];
  const counted = told.filter(([n]) => n).map(([n, what]) => `${n} ${what}`).join(", ");
  const best = branches.reduce((a, b) => (Math.abs(b.gain) > Math.abs(a.gain) ? b : a));
  const where = best.gain ? ` Most telling: token ${best.parting} of ${nameOf(best.source)}, “${wrote(best.source, best.parting).trim()}” or “${wrote(best, best.parting).trim()}”: reward ${number(best.source.reward)} or ${number(best.reward)}.` : "";
  return `${branches.length} ${branches.length === 1 ? "branch" : "branches"} at ${places} ${places === 1 ? "place" : "places"}: ${counted}.${where}${equal ? ` ${equal}` : ""}`;
}

function drawPartings(tree, chosen, choose) {
  const shown = tree.parted.filter((one) => one.gap > 0).slice(0, MOST_PARTINGS);
  if (!shown.length) return [];
  const side = ({ ones, mean }) => element("div", {},
    element("button", { class: `pick ${verdict(mean).kind}${ones.some((one) => one.index === chosen) ? " chosen" : ""}`, "data-side": ones[0].index, title: ones.map(nameOf).join(", "), onclick: () => choose(ones[0].index) }, `${verdict(mean).mark} ${number(mean, 2)}`),
    element("span", { class: "facts" }, `${ones.length} ×`));
  const row = (one) => element("tr", {},
    element("td", {}, `token ${one.at}`), element("td", { class: "tail" }, `…${tailOf(one.source, one.at)}`),
    element("td", {}, one.sides.map(({ ones }) => element("div", { class: "way" }, element("code", {}, visible(wrote(ones[0], one.at)) || "(its end)")))),
    element("td", {}, one.sides.map(side)));
  return [element("table", { id: "partings" },
    element("caption", {}, "Where initial rollouts parted by themselves"),
    element("thead", {}, element("tr", {}, ["where", "after", "they wrote", "mean reward"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, shown.map(row)))];
}

function drawDecisions(tree, chosen, choose) {
  const points = new Map();
  for (const one of tree.trajectories)
    if (one.source) {
      const key = `${one.source.index}/${one.shared}`;
      points.set(key, [...(points.get(key) || []), one]);
    }
  if (!points.size) return drawPartings(tree, chosen, choose);
  const rows = [...points.values()].sort((a, b) => strongest(b) - strongest(a)).map((group) => decisionRow(group, chosen, choose));
  return [element("table", {},
    element("caption", {}, "Where this agent decided, and whether it was rewarded for it"),
    element("thead", {}, element("tr", {}, ["where", "it wrote", "branches wrote", "entropy", "future value", "score", "reward", "branches’ reward"].map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, rows)), ...drawPartings(tree, chosen, choose)];
}

function wrote(one, at) {
  // The next few tokens of its own hand.
  let end = at;
  while (end < at + 3 && one.own[end]) end++;
  const text = one.tokens.slice(at, end).join("");
  return text.length > 28 ? `${text.slice(0, 27)}…` : text;
}

function strongest(group) {
  return Math.max(...group.map((one) => Math.abs(one.gain)));
}

function decisionRow(group, chosen, choose) {
  const { source, shared } = group[0];
  const at = (key) => number(source[key] ? source[key][shared] : null);
  const words = (one, from) => element("code", {}, visible(wrote(one, from)) || "(nothing)");
  const score = source.branching ? at("branching") : group[0].score ? number(group[0].score) : "–";
  return element("tr", {},
    element("td", {}, `${nameOf(source)}, token ${shared}`), element("td", {}, words(source, shared)),
    element("td", {}, group.map((one) => element("div", {}, again(one), same(one) ? null : words(one, one.parting)))),
    element("td", { class: "n" }, at("entropy")), element("td", { class: "n" }, at("future")), element("td", { class: "n" }, score),
    element("td", { class: `n ${verdict(source.reward).kind}` }, `${verdict(source.reward).mark} ${number(source.reward)}`),
    element("td", {}, group.map((one) => element("button", { class: `pick ${changed(one.gain).kind}${one.index === chosen ? " chosen" : ""}`, "data-pick": one.index, onclick: () => choose(one.index) },
      `${verdict(one.reward).mark} ${number(one.reward)}  ${changed(one.gain).mark}${one.gain ? signed(one.gain) : ""}`))));
}
