"use strict";

// Asks for status, curves and pairs every two seconds. Texts are set as text, never as HTML.
const EVERY_MS = 2000;
const WIDTH = 320, HEIGHT = 130, LEFT = 54, BOTTOM = 18, TOP = 8;
const CHARTS = [
  ["Order α", "", [["alpha", ""]]],
  ["Gap", "nats", [["gap", ""]]],
  ["Loss", "the objective's own", [["loss", ""]]],
  ["Rewards", "nats per response", [["reward_real", "annotated"], ["reward_synthetic", "synthetic"]]],
  ["Exact match", "of held-out prompts", [["exact_match", ""]]],
  ["Effective sample size", "responses", [["ess_real", "annotated"], ["ess_synthetic", "synthetic"]]],
  ["|r| per token", "nats", [["abs_reward_mean", "mean"], ["abs_reward_max", "largest"]]],
  ["Throughput", "pairs per second", [["pairs_per_s", ""]]],
  ["Staleness", "versions", [["staleness_mean", "mean"], ["staleness_max", "largest"]]],
  ["Gradient norm", "", [["grad_norm", ""]]],
];
const COLOURS = ["var(--series-1)", "var(--series-2)"];
const base = location.pathname.replace(/\/?$/, "/");
const at = (id) => document.getElementById(id);

function element(name, content = [], attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content].flat());
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll(",", "\u202f");
  return Number(value.toPrecision(digits)).toString();
}

const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

function duration(seconds) {
  if (seconds === null) return "–";
  const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function chart([title, unit, lines], metrics) {
  const there = lines.map(([name]) => metrics.curves[name]);
  if (!there.some(Boolean)) return null;
  const all = there.filter(Boolean).flatMap((curve) => curve.y);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
  const x = (step) => LEFT + (step / Math.max(metrics.steps, 1)) * (WIDTH - LEFT - 6);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const last = lines.map(([, label], i) => there[i] && `${label} ${number(there[i].y.at(-1))}`.trim());
  const svg = drawn("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${last.filter(Boolean).join("; ")}`,
  });
  for (const end of metrics.ends)
    svg.append(drawn("line", { class: "end", x1: x(end), x2: x(end), y1: TOP, y2: HEIGHT - BOTTOM }));
  for (const value of [low, high])
    svg.append(drawn("text", { class: "axis", x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, number(value, 3)));
  svg.append(drawn("text", { class: "axis", x: WIDTH - 6, y: HEIGHT - 4, "text-anchor": "end" }, `step ${number(metrics.steps)}`));
  there.forEach((curve, i) => {
    if (!curve) return;
    const points = curve.x.map((step, k) => `${x(step).toFixed(1)},${y(curve.y[k]).toFixed(1)}`).join(" ");
    svg.append(drawn("polyline", { class: "line", points, stroke: COLOURS[i] }));
    if (curve.x.length < 30)
      curve.x.forEach((step, k) => svg.append(drawn("circle", { cx: x(step), cy: y(curve.y[k]), r: 2, fill: COLOURS[i] })));
  });
  const keys = lines.map(([, label], i) => label && element("span", `${label} `, { class: "key", style: `--c: ${COLOURS[i]}` }));
  return element("figure", [
    element("figcaption", [`${title} `, element("small", [`${unit} `, ...keys.filter(Boolean)])]),
    svg,
  ]);
}

function card(value, what, share) {
  const made = element("div", [element("b", value), element("span", what)], { class: "card" });
  if (share !== undefined) made.append(element("div", element("i", [], { style: `width: ${100 * share}%` }), { class: "bar" }));
  return made;
}

function showStatus(now) {
  at("state").textContent = now.state;
  at("state").className = `badge ${now.state}`;
  at("told").textContent =
    `${number(now.ledger.committed)} pairs in finished rounds, ${now.ledger.lost} lost, ${now.ledger.duplicated} duplicated. ` +
    `${now.deaths} generators were replaced, ${now.warnings} warnings. ` +
    (now.last_checkpoint ? `Last checkpoint: ${now.last_checkpoint}.` : "No checkpoint yet.");
  const { written, pairs, ahead } = now.buffer;
  at("cards").replaceChildren(
    card(`${now.iteration} of ${now.iterations}`, "iteration"),
    card(`${number(now.step)} of ${number(now.steps)}`, "steps of it", now.steps ? now.step / now.steps : 0),
    card(`${number(written)} of ${number(pairs)}`, `pairs written, ${number(ahead)} ahead of the learner`, pairs ? written / pairs : 0),
    card(percent(now.exact_match), "exact match"),
    card(number(now.alpha), "order α"),
    card(number(now.gap), "gap"),
    card(number(now.loss), "loss"),
    card(number(now.staleness_max), "staleness at most, versions"),
    card(duration(now.eta_s), "left"),
  );
  at("generators").replaceChildren(...now.generators.map((one) => element("tr", [
    element("td", one.name),
    element("td", one.placed ? one.state : "waits for resources"),
    element("td", number(one.version), { class: "n" }),
    element("td", number(Math.round(one.tokens_per_s)), { class: "n" }),
    element("td", number(one.generated_tokens), { class: "n" }),
  ])));
}

function showMetrics(metrics) {
  at("charts").replaceChildren(...CHARTS.map((one) => chart(one, metrics)).filter(Boolean));
}

function showPairs(pairs) {
  if (!pairs.length) return;
  const text = (label, content) => element("div", [element("div", label, { class: "label" }), element("div", content, { class: "text" })]);
  at("pairs").replaceChildren(...pairs.map((pair) => element("article", [
    text(`prompt, iteration ${pair.iteration}`, pair.prompt),
    element("div", [text("annotated", pair.real), text(`written by version ${pair.version}`, pair.synthetic)], { class: "responses" }),
  ], { class: "prompt" })));
}

async function ask(what, show) {
  const answer = await fetch(base + what);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error.message);
  show(content);
}

async function look() {
  try {
    await Promise.all([ask("status", showStatus), ask("metrics", showMetrics), ask("pairs", showPairs)]);
  } catch (error) {
    at("state").textContent = "does not answer";
    at("state").className = "badge silent";
    at("told").textContent = `${error.message}. What is shown is what was known last.`;
  }
  setTimeout(look, EVERY_MS);
}

look();
