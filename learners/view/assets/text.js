// What a trajectory says: tokens in their colours, tools folded, decisions marked; a branch beside
// its parent. Long texts are coloured piece by piece, as they come into sight.

const PIECE = 200;

const painter = new IntersectionObserver((entries) => {
  for (const entry of entries)
    if (entry.isIntersecting) {
      painter.unobserve(entry.target);
      if (entry.target.paint) entry.target.paint();
    }
}, { rootMargin: "600px" });

function piece(one, begin, end, context) {
  // One node of plain text until it is near the window; then a span for every token.
  const made = element("span", { class: "piece" }, one.tokens.slice(begin, end).join(""));
  made.paint = () => {
    made.paint = null;
    const leaves = new Map();
    for (const branch of one.branches) leaves.set(branch.position, [...(leaves.get(branch.position) || []), branch]);
    const parts = [];
    for (let i = begin; i < end; i++) {
      if (leaves.has(i)) parts.push(marker(one, i, leaves.get(i), context));
      parts.push(token(one, i, context));
    }
    made.replaceChildren(...parts);
  };
  painter.observe(made);
  return made;
}

function token(one, i, context) {
  const made = element("span", { class: i === context.decision ? "t decision" : "t", "data-one": one.index, "data-i": i }, one.tokens[i]);
  const fill = one[context.mode] ? colour(one[context.mode][i], context.mode, context.scale) : null;
  if (fill) made.style.backgroundColor = fill;
  return made;
}

function marker(one, position, branches, context) {
  const told = branches.map((b) => number(b.reward)).join(", ");
  const best = branches.reduce((a, b) => (Math.abs(b.gain) > Math.abs(a.gain) ? b : a));
  return element("button", { class: `marker ${changed(best.gain).kind}`, title: `${branches.length === 1 ? "a branch leaves" : `${branches.length} branches leave`} here: reward ${told}; this one ${number(one.reward)}`,
    "aria-label": `branch point at token ${position}`, onclick: () => context.choose(best.index) }, `◆${branches.length > 1 ? branches.length : ""}`);
}

function written(one, begin, end, context) {
  // From one token to another: what was sampled in pieces, what tools said folded.
  const found = [];
  const sampled = (from, to) => {
    for (let at = from; at < to; at += PIECE) found.push(piece(one, at, Math.min(at + PIECE, to), context));
  };
  let at = begin;
  for (const [index, turn] of one.turns.entries()) {
    if (turn.end <= begin || turn.begin >= end) continue;
    sampled(Math.max(turn.begin, begin), Math.min(turn.action_end, end));
    if (turn.end > turn.action_end) found.push(folded(one, turn, index, Math.max(turn.action_end, begin), Math.min(turn.end, end)));
    at = Math.min(turn.end, end);
  }
  sampled(at, end);
  return found;
}

function folded(one, turn, index, begin, end) {
  const what = turn.tool ? `${turn.tool}${turn.ok ? "" : " (failed)"}` : "note";
  const argument = turn.argument ? ` “${turn.argument.length > 60 ? turn.argument.slice(0, 60) + "…" : turn.argument}”` : "";
  const facts = [`${turn.end - turn.action_end} tokens`];
  if (turn.seconds !== null) facts.push(turn.seconds < 0.001 ? "< 1 ms" : `${number(turn.seconds)} s`);
  if (one.source && turn.end <= one.shared) facts.push("inherited");
  return element("details", { class: "call", "data-turn": index },
    element("summary", {}, element("b", {}, what), argument, element("span", { class: "facts" }, " → ", facts.join(" · "))),
    element("div", { class: "result" }, one.tokens.slice(begin, end).join("").trim()));
}

function heading(one, told) {
  const result = verdict(one.reward), gain = changed(one.gain);
  const calls = one.turns.filter((t) => t.tool).length;
  const terms = Object.entries(one.terms).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  return element("div", { class: "heading" },
    element("b", {}, told || nameOf(one)),
    element("span", { class: `reward ${result.kind}` }, `${result.mark} reward ${number(one.reward)}`),
    one.source && !told ? element("span", { class: `reward ${gain.kind}` }, one.gain ? `${gain.mark} ${signed(one.gain)} against its parent` : "= as its parent") : null,
    element("span", { class: "facts" }, [one.done ? one.stop : "not finished", terms, `${one.tokens.length} tokens`, calls === 1 ? "1 call" : `${calls} calls`].filter(Boolean).join(" · ")));
}

function drawText(tree, chosen, mode, scale, choose) {
  const one = tree.trajectories[chosen];
  if (!one) return [];
  const context = { mode, scale, choose, decision: null };
  if (!one.source)
    return [heading(one), element("div", { class: "words-of" }, written(one, 0, one.tokens.length, context))];
  const at = one.shared, source = one.source, shown = { ...context, decision: one.parting };
  const shared = element("details", { class: "shared" },
    element("summary", {}, `${at} tokens shared with ${nameOf(source)}: … `, element("span", { class: "tail" }, tailOf(one, at))),
    element("div", { class: "words-of" }, written(one, 0, at, context)));
  return [
    heading(one),
    one.parting > at ? element("p", { class: "absent" }, samePlace(one)) : null,
    at > 0 ? shared : element("p", { class: "facts" }, "It begins anew: nothing is shared."),
    element("div", { class: "columns" },
      element("div", { class: "column" }, heading(source, `parent, ${nameOf(source)}, went on`), element("div", { class: "words-of" }, written(source, at, source.tokens.length, shown))),
      element("div", { class: "column" }, heading(one, "this branch went on"), element("div", { class: "words-of" }, written(one, at, one.tokens.length, shown)))),
  ];
}

function same(one) {
  return one.parting === one.tokens.length && one.parting === one.source.tokens.length;
}

function again(one) {
  if (one.parting === one.shared) return null;
  return element("span", { class: "facts" }, same(one) ? "the very same" : `the same up to ${one.parting}, then `);
}

function samePlace(one) {
  return same(one) ? "It sampled the very tokens of its parent again." : `It sampled ${one.parting - one.shared} of its parent’s tokens again; they part at token ${one.parting}.`;
}

function tailOf(one, at) {
  const text = one.tokens.slice(Math.max(0, at - 30), at).join("").replace(/\s+/g, " ");
  return text.slice(-90);
}
