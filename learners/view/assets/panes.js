// Draws the page's parts around the tree: header, list of tasks, detail of one task, legend and
// inspector. Reads the state in app.js; changes it only through what the buttons call.

function drawAll() {
  drawHeader();
  drawListPane();
  drawDetail();
  drawLedger();
}

function drawHeader() {
  const env = Array.isArray(run.env) ? run.env.join(" ") : run.env;
  replace("title", element("b", {}, run.run), ` ${run.method.replace("learners.", "")} on ${env}`);
  document.title = `${run.run}: rollout trees`;
  replace("modes", element("span", { class: "facts" }, "Colour by "), MODES.map(drawModeButton));
  const options = run.iterations.map((iteration, i) =>
    element("option", { value: i, selected: i === state.iteration }, `iteration ${iteration.number}`),
  );
  const select = element(
    "select",
    { "aria-label": "Iteration", onchange: (event) => chooseIteration(Number(event.target.value)) },
    options,
  );
  replace(
    "buttons",
    run.iterations.length ? select : null,
    element("button", { onclick: toggleFold, title: "key f", id: "fold" }, state.open ? "Fold tools" : "Unfold tools"),
    element("button", { onclick: toggleTheme, title: "key d", id: "theme" }, "Dark / light"),
    element("button", { onclick: toggleHelp, title: "key ?", id: "keys" }, "Keys"),
  );
  replace("progress", drawProgress(), drawCurve(run.curves["reward/mean"] || []));
}

function drawModeButton(mode, i) {
  return element(
    "button",
    {
      class: "mode",
      role: "radio",
      "aria-checked": mode.key === state.mode,
      "data-mode": mode.key,
      title: `key ${i + 1}`,
      onclick: () => chooseMode(mode.key),
    },
    mode.label,
  );
}

function drawProgress() {
  const text = run.planned ? `${run.done} of ${run.planned} iterations` : `${run.done} iterations`;
  const button =
    pending &&
    element("button", { id: "newer", onclick: showPending }, `show iteration ${pending.iterations[0].number}`);
  return [element("span", { class: "facts", id: "done" }, text + (run.live ? " · live" : "")), button];
}

function drawCurve(points) {
  if (points.length < 2) return null;
  const width = 150;
  const height = 30;
  const values = points.map((point) => point[1]);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const last = points[points.length - 1][0] || 1;
  const first = formatNumber(values[0]);
  const newest = formatNumber(values[values.length - 1]);
  const locate = ([iteration, value]) => [
    4 + (iteration / last) * (width - 8),
    height - 5 - ((value - low) / (high - low || 1)) * (height - 10),
  ];
  const line = points
    .map((point) =>
      locate(point)
        .map((c) => c.toFixed(1))
        .join(","),
    )
    .join(" ");
  const svg = element(
    "svg",
    { width, height, role: "img", "aria-label": `mean reward from ${first} to ${newest}` },
    element("polyline", { class: "curve", points: line }),
  );
  const current = currentIteration() && points.find((point) => point[0] === currentIteration().number);
  if (current)
    svg.append(element("circle", { class: "current", cx: locate(current)[0], cy: locate(current)[1], r: 3.5 }));
  return element(
    "span",
    { class: "sparkline", title: "mean reward of initial rollouts, by iteration" },
    svg,
    `reward ${newest}`,
  );
}

function drawListPane() {
  const iteration = currentIteration();
  if (!iteration) return replace("list", element("p", { class: "facts" }, "No trees yet."));
  const { order, nodes } = drawList(iteration.trees, state.tree, state.sort, state.query, chooseTree);
  state.order = order;
  if (iteration.leftOut)
    nodes.push(
      element(
        "p",
        { class: "facts" },
        `${iteration.leftOut} more trees of this iteration are left out; --megabytes sets how many fit.`,
      ),
    );
  const items = document.getElementById("items");
  if (items) return items.replaceChildren(...nodes); // the search field keeps its focus
  const sorts = [
    ["decisions", "largest difference first"],
    ["reward", "lowest reward first"],
    ["order", "in the run’s order"],
  ];
  replace(
    "list",
    element("input", {
      id: "search",
      type: "search",
      placeholder: "Search tasks",
      "aria-label": "Search tasks",
      oninput: (event) => {
        state.query = event.target.value;
        drawListPane();
      },
    }),
    element(
      "select",
      {
        "aria-label": "Order",
        onchange: (event) => {
          state.sort = event.target.value;
          drawListPane();
        },
      },
      sorts.map(([key, label]) => element("option", { value: key, selected: key === state.sort }, label)),
    ),
    element("div", { id: "items" }, nodes),
  );
}

function drawDetail() {
  const tree = currentTree();
  if (!tree) return ["question", "tree", "legend", "decisions", "text"].forEach((id) => replace(id));
  const answer = tree.answers ? tree.answers.join(" or ") : null;
  replace(
    "question",
    element("h1", {}, tree.question === null ? `${tree.task}: text withheld` : tree.question),
    element(
      "p",
      { class: "facts" },
      answer ? ["expected ", element("code", {}, answer), " · "] : null,
      `task ${tree.task}`,
      tree.unavailable ? ` · dropped: ${tree.unavailable}` : "",
    ),
    element("p", { id: "summary" }, summarize(tree)),
  );
  replace("tree", drawTree(tree, state.chosen, state.mode, scale, choose));
  replace("legend", drawLegend(tree));
  replace("decisions", drawDecisions(tree, state.chosen, choose));
  replace("text", drawText(tree, state.chosen, state.mode, scale, choose));
  if (state.open)
    document.querySelectorAll("details.call").forEach((node) => {
      node.open = true;
    });
  inspect(null);
}

function drawLegend(tree) {
  const mode = MODES.find((candidate) => candidate.key === state.mode);
  const chosen = tree.trajectories[state.chosen];
  const marks = element(
    "span",
    { class: "facts" },
    "▬ tool result · ◆ branch point · reward: ✓ right ◐ partly right ✗ wrong ⊘ penalised · ▲▼ against the parent",
  );
  if (mode.key === "plain") return [marks];
  const absent = ABSENT[mode.key] || "not stored";
  if (!scale) return [element("span", { class: "absent" }, `${mode.label}: ${absent}`), marks];
  const low = mode.middle === null ? 0 : mode.middle - scale;
  const high = (mode.middle || 0) + scale;
  const swatches = Array.from({ length: 9 }, (_, i) => drawSwatch(low + ((high - low) * i) / 8));
  const defined =
    chosen && chosen[mode.key] && chosen[mode.key].some((value, i) => i >= chosen.shared && value !== null);
  return [
    element("span", {}, `${mode.label} ${mode.unit}`),
    element("span", {}, formatNumber(low)),
    element("span", { class: "swatches" }, swatches),
    element("span", {}, formatNumber(high)),
    marks,
    defined ? null : element("span", { class: "absent" }, `${chosen ? nameOf(chosen) : ""}: ${absent}`),
  ];
}

function drawSwatch(value) {
  const swatch = element("span", { class: "swatch" });
  swatch.style.backgroundColor = colour(value, state.mode, scale) || "transparent";
  return swatch;
}

function inspect(token) {
  const trajectory = token && currentTree().trajectories[Number(token.dataset.trajectory)];
  if (!trajectory)
    return replace(
      "inspector",
      element("span", { class: "facts" }, "Hover over a token to see its numbers; click to pin them."),
    );
  const i = Number(token.dataset.i);
  const valueOf = (key) => formatNumber(trajectory[key] ? trajectory[key][i] : null);
  const { logprob } = trajectory;
  const probability = logprob && logprob[i] !== null ? `${formatNumber(100 * Math.exp(logprob[i]), 1)} %` : "–";
  const fact = (name, text) => element("span", { class: "fact" }, `${name} `, element("b", {}, text));
  replace(
    "inspector",
    element("code", {}, showSpaces(trajectory.tokens[i])),
    fact("token", i),
    fact("probability", probability),
    fact(trajectory.exact ? "entropy" : "entropy (sampler’s)", valueOf("entropy")),
    fact("future value", valueOf("future")),
    fact("branching score", valueOf("branching")),
    fact("advantage", valueOf("advantage")),
    element("span", { class: "facts" }, nameOf(trajectory)),
  );
}
