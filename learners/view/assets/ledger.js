// Draws what an iteration and the run cost, and the iteration's other metrics.

// The order of rows: tokens, calls, the judge, Python states, money. Others come last.
const LEDGER = [
  "sampled_tokens",
  "reused_tokens",
  "prefilled_tokens",
  "trained_tokens",
  "scored_tokens",
  "updated_tokens",
  "computed_tokens",
  "flops",
  "tool_calls",
  "inherited_calls",
  "free_calls",
  "retries",
  "judge_calls",
  "judge_cached",
  "judge_faults",
  "forked_states",
  "replayed_states",
  "cost",
  "lost",
];

function drawLedger() {
  const metrics = currentIteration() ? currentIteration().metrics : {};
  const sampled = metrics["ledger/sampled_tokens"] || 0;
  const reused = metrics["ledger/reused_tokens"] || 0;
  const tokens = sampled + reused;
  const share = formatNumber((100 * reused) / tokens, 1);
  const saved = reused ? `Branches reused ${share} % of this iteration’s ${formatNumber(tokens)} tokens.` : "";
  const others = Object.keys(metrics)
    .filter((name) => /^(reward|branch|group|advantage|score)\//.test(name))
    .sort();
  const row = (name) => drawMetric(name, name, [formatNumber(metrics[name])]);
  replace(
    "ledger",
    element("h2", {}, "Ledger"),
    element("p", { class: "facts" }, saved),
    drawCosts("counts", "ledger/", metrics),
    drawCosts("seconds", "seconds/", metrics),
    drawCosts("memory", "memory/", metrics),
    element("h2", {}, "Rewards and branches"),
    element("table", {}, element("tbody", {}, others.map(row))),
  );
}

function drawCosts(title, area, metrics) {
  const names = [
    ...new Set([...Object.keys(metrics), ...Object.keys(run.totals), ...Object.keys(run.evaluated)]),
  ].filter((name) => name.startsWith(area));
  if (!names.length) return null;
  const short = (name) => name.replace(area, "");
  names.sort((a, b) => rank(short(a)) - rank(short(b)) || (a < b ? -1 : 1));
  const evaluated = Object.keys(run.evaluated).some((name) => name.startsWith(area));
  const columns = [
    { head: "iteration", values: metrics },
    { head: area === "memory/" ? "maximum" : "run", values: run.totals },
    ...(evaluated ? [{ head: "evals", values: run.evaluated, title: "evaluations and validations of this run" }] : []),
  ];
  const heads = columns.map((column) => element("th", { scope: "col", title: column.title }, column.head));
  const row = (name) =>
    drawMetric(
      name,
      short(name),
      columns.map((column) => formatCost(name, column.values[name])),
    );
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col", class: "area" }, title), heads)),
    element("tbody", {}, names.map(row)),
  );
}

function drawMetric(name, label, texts) {
  return element(
    "tr",
    { title: meaningOf(name) },
    element("th", { scope: "row" }, label.replace(/_/g, " ")),
    texts.map((text) => element("td", { class: "n" }, text)),
  );
}

function rank(name) {
  const index = LEDGER.findIndex((stem) => name.startsWith(stem));
  return index < 0 ? LEDGER.length : index;
}

function meaningOf(name) {
  if (run.meanings[name]) return run.meanings[name];
  const entry = Object.keys(run.meanings).find(
    (candidate) => candidate.includes("<") && name.startsWith(candidate.split("<")[0]),
  );
  return entry ? run.meanings[entry] : "";
}

function formatCost(name, value) {
  if (name.startsWith("memory/") && value !== undefined) return `${formatNumber(value / 2 ** 20, 0)} MiB`;
  return formatNumber(value, name.endsWith("/cost") ? 4 : 1);
}
