"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const cards = [...document.querySelectorAll(".card")];
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const haystacks = data.cards.map((card) => fold([card.prompt, ...card.tags].join("\n")));
  const search = byId("search"), detail = byId("detail");
  const plural = (n, one, many) => n.toLocaleString("en") + " " + (n === 1 ? one : many);
  let show = "all", current = null;

  // --- filter
  const pressedTags = () => [...document.querySelectorAll(".tag[aria-pressed=true]")].map((tag) => tag.dataset.tag);
  function filter() {
    const words = fold(search.value).split(/\s+/).filter(Boolean), tags = pressedTags();
    let prompts = 0, pictures = 0;
    cards.forEach((element, i) => {
      const card = data.cards[i], drawn = card.pictures.length > 0;
      const fits = words.every((word) => haystacks[i].includes(word)) && tags.every((tag) => card.tags.includes(tag)) &&
        (show === "all" || (show === "drawn" ? drawn : element.querySelector(".refusal") !== null));
      element.hidden = !fits;
      if (fits) { prompts += 1; pictures += card.pictures.length; }
    });
    byId("count").textContent = plural(prompts, "prompt", "prompts") + ", " + plural(pictures, "picture", "pictures");
    byId("nothing").hidden = prompts > 0 || cards.length === 0;
  }
  function press(buttons, chosen) {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));
  }
  function group(selector, act) {
    const buttons = [...document.querySelectorAll(selector)];
    buttons.forEach((button) => button.addEventListener("click", () => { press(buttons, button); act(button); }));
  }
  search.addEventListener("input", filter);
  group("[data-show]", (button) => { show = button.dataset.show; filter(); });
  group("[data-scaling]", (button) => document.body.classList.toggle("smooth", button.dataset.scaling === "smooth"));
  document.querySelectorAll(".tag").forEach((tag) => tag.addEventListener("click", () => {
    tag.setAttribute("aria-pressed", String(tag.getAttribute("aria-pressed") !== "true"));
    filter();
  }));
  byId("clear").addEventListener("click", () => {
    search.value = "";
    show = "all";
    press([...document.querySelectorAll("[data-show]")], document.querySelector("[data-show=all]"));
    document.querySelectorAll(".tag").forEach((tag) => tag.setAttribute("aria-pressed", "false"));
    filter();
    search.focus();
  });
  byId("size").addEventListener("input", (event) => document.documentElement.style.setProperty("--tile", event.target.value + "px"));

  // --- provenance
  function sampler(text) {
    try {
      const settings = JSON.parse(text);
      return Object.entries(settings).map(([name, value]) => name.replaceAll("_", " ") + " " + JSON.stringify(value)).join(", ");
    } catch { return text; }
  }
  function provenance(at) {
    const card = data.cards[at.card], [index, seed, by] = card.pictures[at.picture], made = data.made_by[by];
    return { prompt: card.prompt, tags: card.tags, index, seed, negative: made.negative, sampler: made.sampler, model: made.model, code_version: made.code, prompt_sha256: card.sha };
  }
  function fact(list, name, value, mono) {
    if (value === "") return;
    const term = document.createElement("dt"), entry = document.createElement("dd"), text = document.createElement(mono ? "code" : "bdi");
    term.textContent = name;
    text.textContent = value;
    entry.append(text);
    list.append(term, entry);
  }
  function enlarge(image) {
    // A whole multiple of the picture's own pixels, so that crisp pixels are all the same size.
    const room = Math.min(image.closest(".stage").clientWidth - 48, window.innerHeight - 112, 768);
    const side = Math.max(image.naturalWidth, image.naturalHeight) || 1;
    const times = side <= room ? Math.floor(room / side) : room / side;
    image.width = Math.round(image.naturalWidth * times);
    image.height = Math.round(image.naturalHeight * times);
  }
  function open(at) {
    current = at;
    const facts = provenance(at), card = cards[at.card], list = byId("detail-facts"), image = byId("detail-image");
    const source = card.querySelectorAll(".tile")[at.picture].querySelector("img");
    byId("detail-prompt").textContent = card.querySelector(".prompt").textContent;
    list.replaceChildren();
    fact(list, "Picture", (at.picture + 1) + " of " + data.cards[at.card].pictures.length);
    fact(list, "Seed", facts.seed, true);
    fact(list, "Index", String(facts.index), true);
    fact(list, "Away from", facts.negative);
    fact(list, "Sampler", sampler(facts.sampler));
    fact(list, "Model", facts.model, true);
    fact(list, "Code version", facts.code_version, true);
    fact(list, "Prompt hash", facts.prompt_sha256, true);
    fact(list, "Tags", facts.tags.join(", "));
    byId("said").textContent = "";
    byId("detail-save").hidden = image.hidden = !source;
    if (!detail.open) detail.showModal();
    if (source) {
      image.onload = () => enlarge(image);
      image.src = byId("detail-save").href = source.src;
      image.alt = "Generated picture " + (at.picture + 1);
      byId("detail-save").download = "picture-" + facts.prompt_sha256.slice(0, 12) + "-" + facts.index;
    }
  }
  function turn(by) {
    const all = visibleTiles(), here = all.findIndex((at) => at.card === current.card && at.picture === current.picture);
    const next = all[here + by];
    if (next) open(next);
  }
  function visibleTiles() {
    return data.cards.flatMap((card, i) => cards[i].hidden ? [] : card.pictures.map((_, j) => ({ card: i, picture: j })));
  }
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      detail.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    byId("said").textContent = "Copied.";
  }
  byId("cards").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) open({ card: Number(tile.closest(".card").dataset.card), picture: Number(tile.dataset.picture) });
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("close").addEventListener("click", () => detail.close());
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
  detail.addEventListener("close", () => {
    const tile = cards[current.card].querySelectorAll(".tile")[current.picture];
    if (tile) tile.focus();
  });
  document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", () => {
    const facts = provenance(current);
    copy(button.dataset.copy === "prompt" ? facts.prompt : JSON.stringify(facts, null, 2));
  }));
  window.addEventListener("resize", () => { if (detail.open) enlarge(byId("detail-image")); });

  // --- keyboard
  document.addEventListener("keydown", (event) => {
    if (detail.open) {
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
      return;
    }
    if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); search.select(); }
    const tile = document.activeElement.closest && document.activeElement.closest(".tile");
    if (tile && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      const tiles = [...document.querySelectorAll(".card:not([hidden]) .tile")];
      const next = tiles[tiles.indexOf(tile) + (event.key === "ArrowRight" ? 1 : -1)];
      if (next) { event.preventDefault(); next.focus(); }
    }
  });
  filter();
})();
