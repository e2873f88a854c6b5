"use strict";
// The page's script: tables from the study's rows, and a browser of predictions. No library, no network.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const $ = (id) => document.getElementById(id);
  const study = read("study-data");
  const MINUS = "\u2212";

  // Elements are built, never parsed from text: a model's answer is data, not HTML.
  const SVG = "http://www.w3.org/2000/svg";
  function el(name, attributes = {}, ...children) {
    const node = name.startsWith("svg:")
      ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const number = (value, digits = 3) =>
    value === null || value === undefined || value === "" ? "–" : Number(value).toFixed(digits).replace("-", MINUS);
  const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
  const probability = (p) => (p === null || p === undefined ? "–" : p < 0.001 ? "<0.001" : p.toFixed(3));
  const plain = (phase) => phase.replaceAll("_", " ");
  const view = { set: study.sets[0], metric: "exact_match", group: "overall" };

  // ---------------------------------------------------------------- header
  function header() {
    const states = {};
    for (const run of study.runs) states[run.state] = (states[run.state] || 0) + 1;
    const counts = Object.entries(states).map(([state, n]) => `${n} ${state}`).join(", ");
    $("summary").textContent =
      `${study.arms.length} arms, ${study.runs.length} runs (${counts}), evaluated on ${study.sets.join(", ") || "nothing"}.`
      + (study.within.length ? ` Compared within ${study.within.join(", ")}.` : "");
    const unequal = study.arms.filter((arm) => arm.unequal);
    if (unequal.length) {
      $("warnings").append(el("details", { class: "warning" },
        el("summary", {}, `† ${unequal.length} arms are not comparable with others and were compared on request`),
        el("ul", {}, ...unequal.map((arm) => el("li", {}, `${arm.name} ${arm.unequal}`)))));
    }
    for (const arm of study.arms) if (arm.remark) $("warnings").append(el("p", { class: "warning" }, `${arm.name}: ${arm.remark}`));
    for (const note of study.notes) $("warnings").append(el("p", { class: "warning" }, note));
  }

  // ---------------------------------------------------------------- results
  const results = new Map();
  const resultKey = (arm, set, phase, group, metric) => [arm, set, phase, group, metric].join("\u0000");
  for (const row of study.results) results.set(resultKey(row.arm, row.set, row.phase, row.group, row.metric), row);
  const result = (arm, phase, group = view.group) =>
    results.get(resultKey(arm, view.set, phase, group, view.metric));

  function intervalBar(row) {
    const [low, mean, high] = [row.low, row.mean, row.high].map((v) => Math.min(1, Math.max(0, v)) * 200);
    return el("svg:svg", { viewBox: "0 0 200 14", preserveAspectRatio: "none", "aria-hidden": "true" },
      el("svg:line", { x1: 0, x2: 200, y1: 7, y2: 7, class: "tick" }),
      el("svg:line", { x1: low, x2: Math.max(high, low + 1), y1: 7, y2: 7, stroke: "var(--accent)", "stroke-width": 4, opacity: .45 }),
      el("svg:rect", { x: Math.max(0, mean - 1.5), y: 2, width: 3, height: 10, fill: "var(--accent)" }));
  }

  function scoreCell(row, { best = false, base = false, extra = "", label } = {}) {
    if (!row) return el("td", {}, el("span", { class: "note" }, "–"));
    const interval = `[${number(row.low)}, ${number(row.high)}]`;
    return el("td", {}, el("button", {
      class: `cell${best ? " best" : ""}${base ? " base" : ""}`, type: "button",
      "aria-label": `${label}: ${number(row.mean)}, 95 % interval ${interval}; show where it comes from`,
      onclick: () => showOrigin(row),
    }, el("b", {}, number(row.mean)), row.unequal ? el("span", { class: "mark" }, " †") : null,
      el("small", {}, `${interval} · ${row.num_seeds} seed${row.num_seeds === 1 ? "" : "s"}`),
      intervalBar(row), extra ? el("small", {}, extra) : null));
  }

  function grid() {
    const rows = [...new Set(study.arms.map((arm) => arm.row))];
    const orderings = [...new Set(study.arms.map((arm) => arm.ordering))];
    const baselineNames = { majority: "majority answer", zero_shot: "zero-shot base" };
    const baselines = Object.keys(baselineNames).filter((phase) => study.arms.some((arm) => result(arm.name, phase)));
    const table = $("grid");
    table.replaceChildren(
      el("caption", {}, `${study.metrics[view.metric]} on ${view.set}, ${view.group === "overall" ? "all" : view.group} questions: mean and 95 % interval`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"),
        ...baselines.map((phase) => el("th", { scope: "col" }, baselineNames[phase])), ...orderings.map((o) => el("th", { scope: "col" }, o)))));
    const body = el("tbody");
    for (const name of rows) {
      const arms = study.arms.filter((arm) => arm.row === name);
      const finals = arms.map((arm) => result(arm.name, "final")).filter(Boolean);
      const top = Math.max(...finals.map((row) => row.mean));
      const baseline = (phase) => {
        const found = arms.map((arm) => result(arm.name, phase)).filter(Boolean);
        const values = [...new Set(found.map((row) => number(row.mean)))];
        return scoreCell(found[0], { base: true, label: `${name}, ${plain(phase)}`,
          extra: values.length > 1 ? `differs by arm: ${values.join(", ")}` : "" });
      };
      body.append(el("tr", {}, el("th", { scope: "row" }, name), ...baselines.map(baseline),
        ...orderings.map((ordering) => {
          const arm = arms.find((candidate) => candidate.ordering === ordering);
          if (!arm) return el("td", {}, el("span", { class: "note" }, "not run"));
          const row = result(arm.name, "final"), blind = result(arm.name, "blind");
          return scoreCell(row, { best: finals.length > 1 && row && row.mean === top, label: arm.name,
            extra: blind ? `blind ${number(blind.mean)}` : "" });
        })));
    }
    table.append(body);
    const any = study.results.find((row) => row.set === view.set && row.phase === "final" && row.group === view.group && row.metric === view.metric);
    $("results-note").textContent = any
      ? `${any.num_questions} questions on ${any.num_pictures} pictures. Intervals are over new ${any.num_seeds > 1 ? "pictures and new trainings" : "pictures only: one seed says nothing about another training"}. `
        + "The framed cell is the largest of its row, which by itself proves nothing: see the differences. Blind: the trained model without the picture. Press a cell to see its runs."
      : "No number for this choice.";
  }

  function showOrigin(row) {
    const means = row.run_means.split(";"), seeds = row.seeds.split(";"), runs = row.runs.split(";");
    $("origin-body").replaceChildren(
      el("h3", { id: "origin-title" }, `${row.arm} · ${plain(row.phase)} · ${row.group} · ${study.metrics[row.metric]}`),
      el("p", {}, `Mean ${number(row.mean, 4)}, 95 % interval [${number(row.low, 4)}, ${number(row.high, 4)}] over ${row.interval_over}; `
        + `${row.num_questions} questions on ${row.num_pictures} pictures of the set “${row.set}”.`),
      ...(row.unequal ? [el("p", { class: "warning" }, `† ${row.unequal}`)] : []),
      el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ...["seed", "mean", "file"].map((t) => el("th", { scope: "col" }, t)))),
        el("tbody", {}, ...means.map((mean, i) => el("tr", {}, el("td", {}, seeds[i]), el("td", {}, number(mean, 4)),
          el("td", {}, el("code", {}, `${runs[i]}/evaluation/${row.phase}/${row.set}/predictions.jsonl`))))))));
    $("origin").showModal();
  }

  // ---------------------------------------------------------------- differences
  function forest() {
    const rows = study.comparisons.filter((c) => c.set === view.set && c.metric === view.metric && c.group === view.group);
    const table = $("forest");
    table.replaceChildren();
    if (!rows.length) {
      $("differences-note").textContent = "No two arms of one model were compared for this choice.";
      return;
    }
    const reach = Math.max(0.01, ...rows.flatMap((c) => [Math.abs(c.low), Math.abs(c.high)])) * 1.05;
    const x = (value) => 150 + (value / reach) * 145;
    const one = rows.some((c) => c.interval_over === "questions");
    $("differences-note").textContent =
      `First arm minus second on the same questions, 95 % interval. p: ${[...new Set(rows.map((c) => c.test))].join(" or ")}, corrected by Holm for ${rows[0].family_size} comparisons (uncorrected in brackets). `
      + "Detectable: the true difference that such a comparison finds with 80 % power at that correction; smaller ones may exist unseen. "
      + "Permutation (sign flips of pictures) and McNemar (mid-p, one per seed) are uncorrected p-values of these very models on new questions. "
      + study.few_seeds[view.set].map((text) => ` ${text}`).join("")
      + (one ? " With one seed per arm, intervals do not speak of new trainings." : "");
    table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Arms"),
      el("th", { scope: "col" }, `${signed(-reach, 2)}  …  0  …  ${signed(reach, 2)}`),
      ...["Difference", "p (Holm)", "df · paired", "Detectable", "Permutation", "McNemar", "n · seeds"].map((t) => el("th", { scope: "col", class: "number" }, t)))));
    const orderingOf = (name) => study.arms.find((arm) => arm.name === name).ordering;
    const body = el("tbody");
    let model = null;
    for (const c of rows) {
      if (c.model !== model && c.model) body.append(el("tr", {}, el("th", { scope: "rowgroup", colspan: 9, class: "model" }, c.model)));
      model = c.model;
      const found = c.p_holm !== null && c.p_holm < 0.05;
      const names = model ? [c.a, c.b].map(orderingOf) : [c.a, c.b];
      const text = c.identical ? "–" : `${signed(c.difference)} [${signed(c.low)}, ${signed(c.high)}]`;
      body.append(el("tr", { class: found ? "found" : "" },
        el("td", {}, names.join(` ${MINUS} `), c.unequal ? el("span", { class: "mark", title: c.unequal }, " †") : null),
        el("td", {}, el("svg:svg", { viewBox: "0 0 300 26", role: "img", "aria-label": text },
          ...[-1, -.5, .5, 1].map((t) => el("svg:line", { x1: x(t * reach / 1.05), x2: x(t * reach / 1.05), y1: 0, y2: 26, class: "tick" })),
          el("svg:line", { x1: 150, x2: 150, y1: 0, y2: 26, class: "zero" }),
          el("svg:line", { x1: x(c.low), x2: x(c.high), y1: 13, y2: 13, class: "whisker" }),
          el("svg:rect", { x: x(c.difference) - 4, y: 9, width: 8, height: 8, class: "dot" }))),
        el("td", { class: "number" }, text),
        el("td", { class: "number" }, `${probability(c.p_holm)} (${probability(c.p)})`),
        el("td", { class: "number" }, `${c.degrees_of_freedom} · ${c.paired}`),
        el("td", { class: "number" }, c.identical ? "–" : c.detectable_difference === null ? "none below 50 points" : number(c.detectable_difference)),
        el("td", { class: "number" }, probability(c.permutation_p)),
        el("td", { class: "number" }, c.mcnemar_mid_p ? c.mcnemar_mid_p.split(";").map((p) => probability(Number(p))).join(" ") : "–"),
        el("td", { class: "number" }, `${c.num_questions} · ${[...new Set([c.num_seeds_a, c.num_seeds_b])].join("+")}`)));
    }
    table.append(body);
  }

  // ---------------------------------------------------------------- verdicts
  function verdicts() {
    if (!study.verdicts.length) return;
    $("verdicts").hidden = false;
    for (const line of study.final_words) $("final-words").append(el("p", { class: "verdict" }, line));
    const head = ["Comparison", "On", "Gain, points", "p of no difference", "p of a gain of the margin", "Family · df", "Verdict", "Reason"];
    $("verdict-table").append(
      el("thead", {}, el("tr", {}, ...head.map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {}, ...study.verdicts.map((v) => el("tr", {},
        el("td", {}, v.label), el("td", {}, `${v.set_name}, ${v.group}, ${study.metrics[v.metric] || v.metric}`),
        el("td", { class: "number" }, v.gain === null ? "–" : signed(100 * v.gain, 1)),
        el("td", { class: "number", title: v.test }, probability(v.p_holm)),
        el("td", { class: "number" }, v.p_holm === null ? "–" : probability(v.p_refuted)),
        el("td", { class: "number" }, `${v.family_size} · ${v.degrees_of_freedom} · paired: ${v.paired}`),
        el("td", {}, v.verdict), el("td", {}, v.reason)))));
  }

  // ---------------------------------------------------------------- forgetting
  function stages() {
    const phasesOf = (arm) => study.phases.filter((p) => !["majority", "blind"].includes(p) && (result(arm.name, p, "open") || result(arm.name, p, "closed")));
    const middle = (arm) => phasesOf(arm).filter((p) => !["zero_shot", "final"].includes(p));
    const most = Math.max(0, ...study.arms.map((arm) => middle(arm).length));
    const columns = ["before training", ...Array.from({ length: most }, (_, i) => `after stage ${i + 1}`), "final"];
    const table = $("stages");
    table.replaceChildren(el("caption", {}, `${study.metrics[view.metric]} on ${view.set}`), el("thead", {},
      el("tr", {}, el("th", { scope: "col", rowspan: 2 }, "Arm"), ...columns.map((c) => el("th", { scope: "colgroup", colspan: 2 }, c))),
      el("tr", {}, ...columns.flatMap(() => ["open", "closed"].map((g) => el("th", { scope: "col" }, g))))));
    const body = el("tbody");
    for (const arm of study.arms) {
      const phases = ["zero_shot", ...middle(arm)];
      while (phases.length < most + 1) phases.push(null);
      phases.push("final");
      const before = {};
      body.append(el("tr", {}, el("th", { scope: "row" }, arm.name, arm.unequal ? el("span", { class: "mark" }, " †") : null),
        ...phases.flatMap((phase) => ["open", "closed"].map((group) => {
          const row = phase ? result(arm.name, phase, group) : null;
          if (!row) return el("td", { class: "heat" }, "");
          const change = group in before ? row.mean - before[group] : null;
          before[group] = row.mean;
          const share = Math.round(Math.min(1, Math.max(0, row.mean)) * 55);
          const stage = phase.startsWith("after_") ? `${phase.slice(6)} · ` : "";
          return el("td", { class: "heat", style: `background: color-mix(in srgb, var(--heat) ${share}%, var(--paper))` },
            number(row.mean, 2), el("small", {}, stage + (change === null ? "" : signed(change, 2))));
        }))));
    }
    table.append(body);
  }

  // ---------------------------------------------------------------- runs
  function runs() {
    const bad = study.runs.filter((run) => run.state !== "finished");
    for (const run of bad) {
      $("failed").append(el("p", { class: "warning" }, el("b", {}, `${run.state}: `), el("code", {}, run.directory), run.error ? ` — ${run.error}` : "",
        run.overrides ? el("span", { class: "note" }, ` (${run.overrides})`) : null));
    }
    const gigabytes = (bytes) => (bytes ? `${(bytes / 1e9).toFixed(1)} GB` : "–");
    const heads = ["Arm", "Seed", "State", "Steps", "Final loss", "Training", "Answering", "Memory", "GPU memory", "Directory", "Run id", "Commit", "Order"];
    $("run-table").append(
      el("thead", {}, el("tr", {}, ...heads.map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {}, ...study.runs.map((run) => el("tr", {},
        el("td", {}, run.arm || run.overrides), el("td", {}, String(run.seed ?? "–")),
        el("td", {}, el("span", { class: `state ${run.state === "finished" ? "finished" : "bad"}` }, run.state)),
        el("td", { class: "number" }, String(run.num_steps ?? "–")), el("td", { class: "number" }, number(run.final_loss)),
        el("td", { class: "number" }, run.seconds_train == null ? "–" : `${number(run.seconds_train, 0)} s`),
        el("td", { class: "number" }, run.seconds_evaluate == null ? "–" : `${number(run.seconds_evaluate, 0)} s`),
        el("td", { class: "number" }, gigabytes(run.peak_memory_bytes)), el("td", { class: "number" }, gigabytes(run.peak_gpu_bytes)),
        el("td", {}, el("code", {}, run.directory)), el("td", {}, el("code", {}, run.run_id || "–")),
        el("td", {}, el("code", {}, (run.commit || "–").slice(0, 8) + (run.dirty ? " +changes" : ""))),
        el("td", {}, el("code", {}, (run.order_sha256 || "–").slice(0, 8)))))));
  }

  // ---------------------------------------------------------------- predictions
  const MOST_COLUMNS = 6;
  const browser = { set: null, shown: [], rows: [], active: 0, height: 96 };
  let answers = null, urls = null;
  const picture = (index) => (urls ??= read("pictures-data").urls)[index];
  const text = (index) => browser.set.texts[index];
  const label = (column) => column.phase === "final" ? `${column.arm}, seed ${column.seed}`
    : column.phase === "blind" ? `${column.arm}, seed ${column.seed}, blind` : `${column.arm.split(" / ")[0]}: ${plain(column.phase)}`;
  const option = (column, q) => column.codes[q] < 0 ? null : browser.set.options[q][column.codes[q]];
  const isRight = (found) => Boolean(found[1 + browser.set.metrics.indexOf("exact_match")]);

  function openSet() {
    answers ??= read("answers-data").sets;
    browser.set = answers.find((set) => set.name === view.set) || null;
    if (!browser.set) return;
    const sources = [...new Set(browser.set.questions.map((q) => q[4]))].map(text).sort();
    $("source").replaceChildren(el("option", { value: "" }, "any"), ...sources.map((name) => el("option", { value: name }, name)));
    const firsts = new Set();
    browser.shown = browser.set.columns.map((column, i) => [column, i])
      .filter(([column]) => column.phase === "final" && !firsts.has(column.arm) && firsts.add(column.arm))
      .slice(0, window.innerWidth < 760 ? 2 : 3).map(([, i]) => i);
    $("columns").replaceChildren(...browser.set.columns.map((column, i) => el("label", {},
      el("input", { type: "checkbox", value: i, checked: browser.shown.includes(i), onchange: choose }), label(column))));
    filter();
  }

  function choose() {
    const boxes = [...$("columns").querySelectorAll("input")];
    browser.shown = boxes.filter((box) => box.checked).map((box) => Number(box.value));
    for (const box of boxes) box.disabled = !box.checked && browser.shown.length >= MOST_COLUMNS;
    filter();
  }

  const outcomes = {
    any: () => true,
    right: (found) => found.length > 0 && found.every(isRight),
    wrong: (found) => found.length > 0 && found.every((f) => !isRight(f)),
    mixed: (found) => found.some(isRight) && found.some((f) => !isRight(f)),
    differ: (found) => new Set(found.map((f) => f[0])).size > 1,
  };

  function filter() {
    const set = browser.set;
    if (!set) return;
    const columns = browser.shown.map((i) => set.columns[i]);
    const wanted = $("search").value.trim().toLowerCase();
    const lower = set.lower ??= set.texts.map((t) => t.toLowerCase());
    const hits = wanted ? lower.map((t) => t.includes(wanted)) : null;
    const [type, source, outcome] = [$("type").value, $("source").value, outcomes[$("outcome").value]];
    browser.rows = [];
    set.questions.forEach(([id, question, references, kind, from], q) => {
      if ((type && kind !== type) || (source && text(from) !== source)) return;
      const found = columns.map((column) => option(column, q)).filter(Boolean);
      if (!outcome(found)) return;
      if (hits && !(hits[question] || references.some((r) => hits[r]) || found.some((f) => hits[f[0]]) || id.toLowerCase().includes(wanted))) return;
      browser.rows.push(q);
    });
    $("count").textContent = `${browser.rows.length} of ${set.questions.length} questions.`;
    $("num-columns").textContent = String(columns.length);
    const narrow = window.innerWidth <= 760;
    browser.height = narrow ? 104 + 32 * columns.length : 96;
    $("list").style.setProperty("--columns", columns.length);
    $("head").style.setProperty("--columns", columns.length);
    $("head").replaceChildren(...["", "Question", "Right answer", ...columns.map(label)].map((t) => el("div", { title: t }, t)));
    $("spacer").style.height = `${Math.max(1, browser.rows.length) * browser.height}px`;
    browser.active = 0;
    $("list").scrollTop = 0;
    draw();
  }

  function thumbs(indices) {
    const found = indices.map(picture).filter(Boolean);
    if (!found.length) return el("div", { class: "thumbs none" }, "no picture");
    return el("div", { class: "thumbs" }, ...found.map((url) => el("img", { src: url, alt: "", loading: "lazy", decoding: "async" })));
  }

  function answer(column, q) {
    const found = option(column, q);
    const who = el("span", { class: "who" }, label(column));
    if (!found) return el("div", { class: "answer absent" }, "not asked", who);
    const right = isRight(found);
    return el("div", { class: `answer ${right ? "right" : "wrong"}` },
      el("span", { class: "clamp" }, `${right ? "✓" : "✗"} ${text(found[0]) || "(empty)"}`), who);
  }

  // Only what is in sight is in the document: 2,248 questions scroll like twenty.
  function draw() {
    const list = $("list");
    const first = Math.max(0, Math.floor(list.scrollTop / browser.height) - 4);
    const last = Math.min(browser.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / browser.height) + 4);
    const items = [];
    for (let i = first; i < last; i++) {
      const q = browser.rows[i], [id, question, references, kind, source, , shown] = browser.set.questions[q];
      items.push(el("div", {
        id: `item-${i}`, class: `row item${i === browser.active ? " active" : ""}`, role: "option", "aria-selected": String(i === browser.active),
        "aria-setsize": browser.rows.length, "aria-posinset": i + 1, style: `top:${i * browser.height}px;height:${browser.height}px`,
        onclick: () => { browser.active = i; draw(); openQuestion(); },
      }, thumbs(shown),
        el("div", {}, el("div", { class: "clamp" }, text(question)), el("div", { class: "tags" }, `${kind} · ${text(source)} · ${id}`)),
        el("div", { class: "reference" }, el("div", { class: "clamp" }, references.map(text).join(" / "))),
        ...browser.shown.map((c) => answer(browser.set.columns[c], q))));
    }
    if (!browser.rows.length) items.push(el("div", { class: "empty" }, "No prediction matches these filters."));
    list.replaceChildren($("spacer") || el("div", { id: "spacer" }), ...items);
    if (browser.rows.length) list.setAttribute("aria-activedescendant", `item-${browser.active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function move(to) {
    const list = $("list");
    browser.active = Math.max(0, Math.min(browser.rows.length - 1, to));
    const top = browser.active * browser.height;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + browser.height > list.scrollTop + list.clientHeight) list.scrollTop = top + browser.height - list.clientHeight;
    draw();
  }

  function openQuestion() {
    const q = browser.rows[browser.active];
    if (q === undefined) return;
    const [id, question, references, kind, source, split, shown] = browser.set.questions[q];
    const metrics = browser.set.metrics;
    const score = (found, name) => number(found[1 + metrics.indexOf(name)], 2);
    const found = shown.map(picture).filter(Boolean);
    const arms = new Map(), seeds = [...new Set(browser.set.columns.map((column) => column.seed))].sort((a, b) => a - b);
    for (const column of browser.set.columns) {
      const its = option(column, q), name = label(column).replace(/, seed -?\d+/, "");
      if (its) arms.set(name, (arms.get(name) || new Map()).set(column.seed, its));
    }
    const full = (its) => [
      el("span", { class: `answer ${isRight(its) ? "right" : "wrong"}` }, `${isRight(its) ? "✓" : "✗"} ${text(its[0]) || "(empty)"}`),
      el("small", {}, ["f1", "bertscore_f1"].filter((m) => its[1 + metrics.indexOf(m)] !== null).map((m) => `${study.metrics[m]} ${score(its, m)}`).join(" · "))];
    $("question-place").textContent = `Question ${browser.active + 1} of ${browser.rows.length}`;
    $("question-body").replaceChildren(el("div", { class: "question" },
      el("div", { class: "pictures" }, ...(found.length ? found.map((url, i) => el("img", { src: url, alt: `Picture ${i + 1} of the question` })) : [el("p", { class: "note" }, "No picture on this page.")])),
      el("div", {}, el("h3", { id: "question-title" }, text(question)),
        el("p", {}, "Right: ", el("b", {}, references.map(text).join(" / "))),
        el("p", { class: "note" }, `${kind} · ${text(source)} · ${text(split)} · ${id}`),
        el("div", { class: "scroll" }, el("table", { class: "seeds" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Arm"), ...seeds.map((seed) => el("th", { scope: "col" }, `seed ${seed}`)))),
          el("tbody", {}, ...[...arms].map(([name, bySeed]) => el("tr", {}, el("th", { scope: "row" }, name),
            ...seeds.map((seed) => el("td", {}, ...(bySeed.has(seed) ? full(bySeed.get(seed)) : [])))))))))));
    if (!$("question").open) $("question").showModal();
  }

  function browse() {
    const list = $("list");
    list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(list.clientHeight / browser.height) - 1);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (event.key in moves) { event.preventDefault(); move(browser.active + moves[event.key]); }
      // Without preventDefault the same key press would go on to the dialog's first button.
      if (event.key === "Enter") { event.preventDefault(); openQuestion(); }
    });
    const step = (by) => { move(browser.active + by); openQuestion(); };
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("question").addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    $("filters").addEventListener("input", (event) => { if (event.target.type !== "checkbox") filter(); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", () => setTimeout(openSet));
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector(".close").addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) { event.preventDefault(); $("search").focus(); }
      if (event.key === "Escape") $("arm-picker").open = false;
    });
    document.addEventListener("click", (event) => { if (!$("arm-picker").contains(event.target)) $("arm-picker").open = false; });
    window.addEventListener("resize", () => browser.set && filter());
    // The predictions are parsed when the reader comes near them.
    const near = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { near.disconnect(); openSet(); }
    }, { rootMargin: "600px" });
    near.observe($("browser"));
  }

  // ---------------------------------------------------------------- start
  function controls() {
    const measured = Object.entries(study.metrics).filter(([metric]) => study.results.some((row) => row.metric === metric));
    $("set").append(...study.sets.map((name) => el("option", { value: name }, name)));
    $("metric").append(...measured.map(([value, name]) => el("option", { value }, name)));
    for (const name of ["set", "metric", "group"]) {
      $(name).value = view[name];
      $(name).addEventListener("change", () => {
        view[name] = $(name).value;
        tables();
        if (name === "set" && answers) openSet();
      });
    }
  }
  function tables() { grid(); forest(); stages(); }

  header();
  verdicts();
  controls();
  tables();
  runs();
  browse();
})();
