// The browser of questions. Questions and passages lie in the page in compressed blocks, which are unpacked
// when they are first looked at. Every text enters the page as a text node, never as HTML.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const about = JSON.parse(find("about-blocks").textContent);
  const narrow = matchMedia("screen and (max-width: 959px)"); // paper is narrow, too, but has no list
  const added = () => (narrow.matches ? 20 : 100); // questions added to the list at once

  // ---- blocks ----

  const unpacked = new Map();

  function block(name) {
    if (!unpacked.has(name)) unpacked.set(name, unpack(find(name).textContent));
    return unpacked.get(name);
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // Entry `place` of a store that is cut into blocks of `about.sizes[store]` entries.
  async function entry(store, place) {
    const size = about.sizes[store];
    const entries = await block(`${store}-${Math.floor(place / size)}`);
    return entries[place % size];
  }

  // ---- elements ----

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const text = (tag, kind, words) => element(tag, { class: kind, dir: "auto" }, words);

  function percent(probability) {
    if (probability === null || probability === undefined) return "–";
    const value = 100 * probability;
    if (value > 0 && value < 0.1) return "< 0.1";
    return value < 10 ? value.toFixed(1) : value.toFixed(0);
  }

  // p_R as p with R below.
  function named(name) {
    const [letter, index] = name.split("_");
    return index ? [letter, element("sub", {}, index)] : [name];
  }

  function bar(kind, name, probability) {
    const filled = element("span", { class: `bar ${kind}` });
    filled.style.setProperty("--share", probability || 0);
    return element("span", { class: "measure" },
      element("span", { class: "name" }, ...named(name)), filled,
      element("span", { class: "number" }, percent(probability)));
  }

  // A text with its answers marked. Python counts characters, JavaScript halves of some of them.
  function marked(tag, kind, words, spans) {
    const made = element(tag, { class: kind, dir: "auto" });
    const characters = spans.length ? Array.from(words) : [];
    let end = 0;
    for (const [from, to] of spans) {
      made.append(characters.slice(end, from).join(""), element("mark", {}, characters.slice(from, to).join("")));
      end = to;
    }
    made.append(spans.length ? characters.slice(end).join("") : words);
    return made;
  }

  // ---- the list ----

  let index = [];
  let places = []; // of the questions that pass the filter
  let shown = 0;
  let chosen = null;

  function refilter() {
    const filter = find("filters").elements.filter.value;
    const task = find("task") ? find("task").value : "";
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    places = [];
    index.forEach((question, place) => {
      if (task && question.task !== task) return;
      if (filter === "no-gold" ? question.gold_retrieved !== false : filter !== "all" && question.category !== filter) return;
      if (words.every((word) => question.searched.includes(word))) places.push(place);
    });
    const all = index.length.toLocaleString("en");
    const some = places.length.toLocaleString("en");
    find("count").textContent = places.length === index.length ? `${all} questions` : `${some} of ${all} questions`;
    // The chosen question may lie inside the list, on a narrow page.
    const detail = find("detail");
    if (detail && !narrow.matches) find("pane").append(detail);
    find("list").replaceChildren();
    shown = 0;
    more();
    if (detail && narrow.matches) place_detail(detail);
  }

  function more() {
    const list = find("list");
    const next = places.slice(shown, shown + added());
    list.querySelector(".more")?.remove();
    list.append(...next.map(row));
    shown += next.length;
    if (shown < places.length) {
      const rest = (places.length - shown).toLocaleString("en");
      const button = element("button", { type: "button" }, `Show more (${rest} left)`);
      button.addEventListener("click", more);
      list.append(element("li", { class: "more" }, button));
    }
  }

  function row(place) {
    const question = index[place];
    const button = element("button", { type: "button", class: "question", "data-place": place, "aria-current": place === chosen },
      element("span", { class: `sign ${question.category}`, title: about.categories[question.category] }),
      text("span", "words", question.question),
      text("span", "answer", question.answer));
    button.addEventListener("click", () => choose(place));
    return element("li", {}, button);
  }

  // ---- one question ----

  async function choose(place) {
    const closes = place === chosen && narrow.matches && find("detail");
    chosen = closes ? null : place;
    for (const button of find("list").querySelectorAll(".question")) {
      button.setAttribute("aria-current", Number(button.dataset.place) === chosen);
    }
    if (closes) {
      find("detail").remove();
      return;
    }
    const question = await entry("questions", place);
    const numbers = new Set(Object.values(question.chunks).flat().map((chunk) => chunk.passage));
    const passages = new Map();
    for (const number of numbers) passages.set(number, await entry("passages", number));
    if (chosen !== place) return; // another one was chosen while this one was unpacked
    find("detail")?.remove();
    place_detail(detail_of(place, question, passages));
    history.replaceState(null, "", `#question=${encodeURIComponent(index[place].id)}`);
  }

  function place_detail(detail) {
    const button = find("list").querySelector(`[data-place="${chosen}"]`);
    if (narrow.matches && button) {
      button.parentNode.append(detail);
    } else {
      find("pane").replaceChildren(detail);
      if (!narrow.matches) find("pane").scrollTop = 0;
    }
  }

  function detail_of(place, question, passages) {
    const listed = index[place];
    const task = listed.task ? `${listed.task} · ` : "";
    return element("article", { id: "detail" },
      element("p", { class: "kicker" }, `${task}${about.categories[listed.category]}`),
      text("h3", "", listed.question),
      element("p", { class: "gold" }, "Gold: ", text("b", "", question.gold.join(" | ") || "unknown")),
      systems_table(question),
      chunks_of(question, passages),
      candidates_of(question));
  }

  function systems_table(question) {
    const rows = Object.entries(question.systems).map(([name, system]) => {
      const best = system.candidates[0];
      const is_right = system.score >= 1;
      const score = system.score > 0 && system.score < 1 ? system.score.toFixed(2) : is_right ? "✓" : "✗";
      const label = is_right ? "right" : "wrong";
      return element("tr", {},
        element("th", { scope: "row" }, about.systems[name] || name),
        element("td", { class: `score ${label}`, "aria-label": label }, question.gold.length ? score : ""),
        element("td", { class: "answer" }, text("span", "", system.text), system.is_cut ? element("small", {}, " cut") : null),
        element("td", { class: "probability" }, best ? bar(name === "radit" ? "after" : "before", "", best.probability) : ""));
    });
    const heads = ["System", "", "Answer", "Probability, %"].map((words) => element("th", { scope: "col" }, words));
    const head = element("thead", {}, element("tr", {}, ...heads));
    return element("div", { class: "scroll" }, element("table", { class: "systems" }, head, element("tbody", {}, ...rows)));
  }

  // One list of both rankings: those of R-ft first, then what only the base retriever found.
  function chunks_of(question, passages) {
    const merged = new Map();
    for (const retriever of ["r_ft", "base"]) {
      (question.chunks[retriever] || []).forEach((chunk, place) => {
        if (!merged.has(chunk.passage)) merged.set(chunk.passage, {});
        merged.get(chunk.passage)[retriever] = { ...chunk, rank: place + 1 };
      });
    }
    if (!merged.size) return element("p", { class: "note" }, "No chunks are kept for this question.");
    const items = [...merged].map(([number, by]) => chunk_item(passages.get(number), by));
    return element("div", {}, element("h4", {}, "Chunks, in the order of R-ft"), element("ol", { class: "chunks" }, ...items));
  }

  function chunk_item([title, words], by) {
    const chunk = by.r_ft || by.base;
    const signs = [];
    if (chunk.is_gold) signs.push(element("span", { class: "tag gold" }, "gold"));
    if (chunk.holds_answer) signs.push(element("span", { class: "tag" }, "holds an answer"));
    const passage = marked("p", "passage", words, chunk.text_spans);
    return element("li", { class: by.r_ft ? "" : "dropped" },
      element("div", {}, element("p", { class: "title" }, marked("b", "", title, chunk.title_spans), ...signs), passage),
      element("div", { class: "ranks" }, rank_of("before", by.base), rank_of("after", by.r_ft)));
  }

  function rank_of(kind, chunk) {
    const name = kind === "before" ? "Before" : "After";
    if (!chunk) return element("div", { class: "rank" }, element("p", {}, name, element("span", {}, "–")));
    const nats = Object.entries(chunk.answer_log_probs || {}).map(([lm, value]) => `${about.lms[lm] || lm} ${value.toFixed(2)}`);
    const title = nats.length ? `log p of the gold answer with this chunk, nats: ${nats.join(", ")}` : null;
    return element("div", { class: "rank", title },
      element("p", {}, name, element("span", {}, `#${chunk.rank}`)),
      chunk.retrieval_prob === null ? null : bar(kind, "p_R", chunk.retrieval_prob),
      chunk.lsr_prob === null ? null : bar("lsr", "p_LSR", chunk.lsr_prob));
  }

  // Every candidate's probability in the ensemble, and under each chunk alone.
  function candidates_of(question) {
    const made = element("div", { class: "candidates" });
    for (const [name, system] of Object.entries(question.systems)) {
      if (!system.candidates.length) continue;
      const count = system.candidates.length;
      const summary = element("summary", {}, `${about.systems[name] || name}: ${count} candidate${count === 1 ? "" : "s"}`);
      made.append(element("details", { open: name === "radit" ? "" : null }, summary, candidate_table(system.candidates)));
    }
    return made.childElementCount ? element("div", {}, element("h4", {}, "Candidate answers, probability in %"), made) : null;
  }

  function candidate_table(candidates) {
    const chunks = Math.max(...candidates.map((candidate) => candidate.log_probs.length));
    const numbers = Array.from({ length: chunks }, (_, place) => element("th", { scope: "col", title: `under chunk ${place + 1} alone` }, `${place + 1}`));
    const head = element("tr", {}, element("th", { scope: "col" }, "Answer"), element("th", { scope: "col" }, "Ensemble"), ...numbers);
    const rows = candidates.map((candidate) => {
      const cells = candidate.log_probs.map((value) => {
        const probability = Math.exp(value);
        const cell = element("td", { class: "cell" }, percent(probability));
        cell.style.setProperty("--share", probability);
        return cell;
      });
      return element("tr", {}, element("th", { scope: "row" }, text("span", "", candidate.text)),
        element("td", { class: "probability" }, bar("after", "", candidate.probability)), ...cells);
    });
    return element("div", { class: "scroll", tabindex: 0 }, element("table", { class: "matrix" }, element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  // ---- start ----

  function from_address() {
    const id = new URLSearchParams(location.hash.slice(1)).get("question");
    const place = id === null ? -1 : index.findIndex((question) => question.id === id);
    if (place >= 0 && place !== chosen) choose(place);
  }

  async function start() {
    if (!("DecompressionStream" in window)) {
      find("count").textContent = "This browser cannot unpack the questions: it has no DecompressionStream.";
      return;
    }
    index = (await block("index")).map((question) => ({
      ...question,
      searched: [question.id, question.question, question.answer, ...question.gold].join("\n").toLowerCase(),
    }));
    find("filters").addEventListener("submit", (event) => event.preventDefault());
    find("filters").addEventListener("input", refilter);
    // Arrows walk through the list.
    find("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = step && document.activeElement.closest("li")?.[step]?.querySelector("button");
      if (!next) return;
      event.preventDefault();
      next.focus();
      if (!narrow.matches && next.dataset.place) choose(Number(next.dataset.place));
    });
    narrow.addEventListener("change", () => find("detail") && place_detail(find("detail")));
    addEventListener("hashchange", from_address);
    refilter();
    from_address();
    if (chosen === null && !narrow.matches && places.length) choose_first();
  }

  // A wide page shows its first question without being asked, and leaves the address as it is.
  async function choose_first() {
    const address = location.href;
    await choose(places[0]);
    history.replaceState(null, "", address);
  }

  // After the first view is there.
  requestAnimationFrame(() => setTimeout(start));
})();
