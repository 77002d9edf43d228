"use strict";
// The report's clips, charts and stars. Everything that comes from a job is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const GAP = 20, MIN_CARD = 240, TEXT_HEIGHT = 88, OVERSCAN = 600, MAX_TAKES = 400;
const PARAMETERS = ["seed", "sample_steps", "solver_name", "model_name", "quality", "repeat"];
const PLAIN = new Set(["clip_id", "row", "line", "text_prompt", "image_path", "status", "error", "video_path", "video_bytes",
  "worker", "paired_with", "decode_worker", "node", "device", "attention_backend", "dtype", "attempts", "finished_at", "notes", "current",
  "encode_s", "denoise_s", "decode_s", "height", "width", "lossy_steps", "shortcuts", "left_out", "passes", "audits", "video_loss",
  "audio_loss", "exact_from_step", ...PARAMETERS]);

let clips = [], listed = [], superseded = [], names = [], shown = [], inList = 0, stars = new Set(), charts = null, isServed = false;
let view = "cards", opened = -1;

// -- data ------------------------------------------------------------------------------------------------------------

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** One object a clip is made when it is asked for: columns stay columns, so that a hundred thousand clips fit. */
async function load(root) {
  const found = [];
  names = [];
  for (const template of root.querySelectorAll("template.clips")) {
    const chunk = await unpacked(template.content.textContent);
    for (const name of Object.keys(chunk.columns)) if (!names.includes(name)) names.push(name);
    for (let i = 0; i < chunk.rows; i++) found.push({chunk, i});
  }
  clips = found;
  listed = clips.filter((clip) => of(clip, "current") !== false);
  superseded = clips.filter((clip) => of(clip, "current") === false);
  charts = await unpacked(root.querySelector("#charts").content.textContent);
}

function of(clip, name) {
  const column = clip.chunk.columns[name];
  if (!column) return null;
  return column.codes ? column.values[column.codes[clip.i]] : column.values[0] ?? null;
}


/** The row, with its line where that cannot be told from the row, as everywhere else. */
function place(clip) {
  const row = of(clip, "row"), line = of(clip, "line"), repeat = of(clip, "repeat");
  const at = line === null || line === row || line === row + 1 ? "" : ` (line ${line})`;
  return `row ${row}${at}${repeat ? `, repeat ${repeat}` : ""}`;
}

const text = (value) => value === null || value === undefined ? "–" : String(value);
const path = (relative) => relative.split("/").map(encodeURIComponent).join("/");
const poster = (clip) => `${$("data").dataset.posters}/${encodeURIComponent(of(clip, "clip_id"))}.jpg`;
const varying = () => names.filter((name) => !PLAIN.has(name) && !name.startsWith("meta_"));
const metas = () => names.filter((name) => name.startsWith("meta_"));

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value); else made[name] = value;
  }
  made.append(...children);
  return made;
}

// -- filters ---------------------------------------------------------------------------------------------------------

function distinct(name, among) {
  const counted = new Map();
  for (const clip of among) {
    const value = of(clip, name);
    if (value !== null && value !== "") counted.set(value, (counted.get(value) ?? 0) + 1);
  }
  return [...counted].sort(([a], [b]) => compare(a, b));
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
}

function fill(select, label, values) {
  const before = select.value;
  select.replaceChildren(new Option(label, ""), ...values.map(([value, n]) => new Option(n === null ? value : `${value} (${n})`, value)));
  select.value = [...select.options].some((option) => option.value === before) ? before : "";
}

function fillFilters() {
  for (const name of ["status", "model_name", "device"]) fill($(name), "any", distinct(name, listed));
  fill($("column"), "none", [...metas(), ...varying(), ...PARAMETERS.filter((name) => names.includes(name))].map((name) => [name, null]));
  fillValues();
}

function fillValues() {
  const column = $("column").value;
  $("value").disabled = !column;
  fill($("value"), "any", column ? distinct(column, clips).slice(0, 2000) : []);
}

function matches(clip, words) {
  for (const name of ["status", "model_name", "device"]) if ($(name).value && of(clip, name) !== $(name).value) return false;
  if ($("starred").checked && !stars.has(of(clip, "clip_id"))) return false;
  const column = $("column").value;
  if (column && $("value").value && String(of(clip, column)) !== $("value").value) return false;
  if (!words.length) return true;
  const searched = [of(clip, "text_prompt"), of(clip, "clip_id"), place(clip), of(clip, "error"), of(clip, "notes"),
    ...metas().map((name) => of(clip, name))].join("\n").toLowerCase();
  return words.every((word) => searched.includes(word));
}

function filter() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const inOrder = listed.filter((clip) => matches(clip, words));
  inList = inOrder.length;
  shown = inOrder.concat(superseded.filter((clip) => matches(clip, words)));
  $("count").textContent = portion(inList, listed.length);
  $("superseded").hidden = superseded.length === 0;
  $("superseded-count").textContent = portion(shown.length - inList, superseded.length);
  if (view === "grid") fillPrompts();
  layOut();
}

function portion(part, all) {
  return part === all ? all.toLocaleString("en") : `${part.toLocaleString("en")} of ${all.toLocaleString("en")}`;
}

// -- cards: only those near the window are in the document -----------------------------------------------------------

let columns = 1, cardWidth = MIN_CARD, cardHeight = 300;
const cards = new Map();

/** The two lists of cards, each with the clips of `shown` that it holds: those of the job's list, and superseded ones. */
function blocks() {
  return [{host: $("list"), first: 0, end: view === "cards" ? inList : 0}, {host: $("superseded-list"), first: inList, end: shown.length}];
}

const blockOf = (index) => blocks()[index < inList ? 0 : 1];

function layOut() {
  const width = $("clips").clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (MIN_CARD + GAP)));
  cardWidth = (width - GAP * (columns - 1)) / columns;
  cardHeight = Math.round(cardWidth / ratio()) + TEXT_HEIGHT + 12;
  for (const {host, first, end} of blocks()) host.style.height = `${Math.ceil((end - first) / columns) * (cardHeight + GAP)}px`;
  for (const card of cards.values()) card.remove();
  cards.clear();
  draw();
}

function ratio() {
  const sizes = new Map();
  for (const clip of shown.slice(0, 1000)) {
    const key = of(clip, "width") / of(clip, "height");
    if (key > 0) sizes.set(key, (sizes.get(key) ?? 0) + 1);
  }
  return [...sizes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? 16 / 9;
}

function draw() {
  const near = new Set(blocks().flatMap(nearWindow));
  for (const [index, card] of cards) {
    if (!near.has(index) && !card.contains(document.activeElement)) {
      card.remove();
      cards.delete(index);
    }
  }
  for (const index of near) if (!cards.has(index)) addCard(index);
}

function nearWindow({host, first, end}) {
  const top = host.getBoundingClientRect().top;
  const from = first + Math.max(0, Math.floor((-top - OVERSCAN) / (cardHeight + GAP))) * columns;
  const to = Math.min(end, first + Math.ceil((innerHeight - top + OVERSCAN) / (cardHeight + GAP)) * columns);
  return Array.from({length: Math.max(0, to - from)}, (_, i) => from + i);
}

function addCard(index) {
  const clip = shown[index], id = of(clip, "clip_id"), {host, first, end} = blockOf(index), position = index - first;
  const card = element("article", {className: "clip", id: `clip-${id}`, role: "listitem", "aria-setsize": end - first, "aria-posinset": position + 1});
  Object.assign(card.style, {width: `${cardWidth}px`, height: `${cardHeight}px`,
    left: `${(position % columns) * (cardWidth + GAP)}px`, top: `${Math.floor(position / columns) * (cardHeight + GAP)}px`});
  const quality = (of(clip, "quality") ?? "exact") === "exact" ? [] : [`quality ${of(clip, "quality")}`];
  const facts = [place(clip), ...quality, ...varying().map((name) => `${name} ${text(of(clip, name))}`), `seed ${of(clip, "seed")}`].join(" · ");
  card.append(posterOf(clip, Math.round(cardWidth / ratio()), () => open(index)),
    element("p", {className: "line"}, starOf(clip), element("span", {textContent: facts, title: facts})),
    element("p", {className: "text", dir: "auto", textContent: of(clip, "text_prompt")}));
  card.dataset.index = index;
  cards.set(index, card);
  host.append(card);
}

function posterOf(clip, height, onOpen) {
  const button = element("button", {type: "button", className: "poster", "aria-label": `Open ${place(clip)}: ${of(clip, "text_prompt")}`});
  button.style.height = `${height}px`;
  const video = of(clip, "video_path");
  if (video === null) {
    const status = of(clip, "status");
    button.append(element("span", {className: status === "failed" ? "none bad" : "none",
      textContent: status === "failed" ? `failed: ${of(clip, "error") ?? "no reason was given"}` : status}));
  } else {
    button.append(element("img", {src: poster(clip), alt: "", loading: "lazy", decoding: "async"}));
    playOnHover(button, video);
  }
  button.addEventListener("click", onOpen);
  return button;
}

function playOnHover(button, video) {
  let playing = null;
  const stop = () => { playing?.remove(); playing = null; };
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "touch" || playing) return;
    playing = element("video", {src: path(video), muted: true, loop: true, playsInline: true, preload: "auto", "aria-hidden": "true"});
    button.append(playing);
    playing.play().catch(() => {});
  });
  button.addEventListener("pointerleave", stop);
}

// -- stars -----------------------------------------------------------------------------------------------------------

const starKey = () => `ovi-ray stars ${$("data").dataset.key}`;

function starOf(clip) {
  const id = of(clip, "clip_id"), button = element("button", {type: "button", className: "star"});
  button.dataset.id = id;
  button.dataset.place = place(clip);
  showStar(button);
  button.addEventListener("click", () => toggleStar(clip));
  return button;
}

function showStar(button) {
  const is = stars.has(button.dataset.id);
  button.setAttribute("aria-pressed", is);
  button.setAttribute("aria-label", `Star ${button.dataset.place}`);
  button.textContent = is ? "★" : "☆";
}

async function toggleStar(clip) {
  const id = of(clip, "clip_id"), is = !stars.has(id);
  if (is) stars.add(id); else stars.delete(id);
  showStars();
  try {
    if (!isServed) localStorage.setItem(starKey(), JSON.stringify([...stars]));
    else {
      const answer = await fetch("stars", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({clip_id: id, starred: is})});
      if (!answer.ok) throw new Error(await answer.text());
    }
  } catch (error) {
    tell(`The star is not saved: ${error.message}`);
  }
}

function showStars() {
  for (const button of document.querySelectorAll(".star")) showStar(button);
  const clip = shown[opened];
  if (clip) {
    const is = stars.has(of(clip, "clip_id"));
    $("star").setAttribute("aria-pressed", is);
    $("star").textContent = is ? "★ Starred" : "☆ Star";
  }
  $("picks").disabled = stars.size === 0;
  $("picks").textContent = stars.size ? `Download picks.csv (${stars.size})` : "Download picks.csv";
}

async function loadStars() {
  try {
    if (isServed) stars = new Set(await (await fetch("stars")).json());
    else stars = new Set(JSON.parse(localStorage.getItem(starKey()) ?? "[]"));
  } catch { stars = new Set(); }
  showStars();
}

function picksCsv() {
  const columns = ["clip_id", "row", "repeat", "video_path", "seed", ...varying(), "text_prompt", ...metas()];
  const cell = (value) => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const picked = clips.filter((clip) => stars.has(of(clip, "clip_id")));
  return [columns, ...picked.map((clip) => columns.map((name) => of(clip, name) ?? ""))]
    .map((row) => row.map((value) => cell(String(value))).join(",")).join("\r\n") + "\r\n";
}

function downloadPicks() {
  const url = URL.createObjectURL(new Blob([picksCsv()], {type: "text/csv"}));
  element("a", {href: url, download: "picks.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// -- one clip --------------------------------------------------------------------------------------------------------

function open(index) {
  const clip = shown[index];
  if (!clip) return;
  opened = index;
  $("clip-title").textContent = place(clip);
  $("player").replaceChildren();
  if (of(clip, "video_path") !== null) {
    $("player").append(element("video", {controls: true, autoplay: true, loop: true, playsInline: true, poster: poster(clip),
      src: path(of(clip, "video_path")), "aria-label": place(clip)}));
  }
  $("clip-error").textContent = of(clip, "error") ?? of(clip, "notes") ?? "";
  $("clip-prompt").textContent = of(clip, "text_prompt");
  const facts = names.filter((name) => !["error", "text_prompt", "current"].includes(name) && of(clip, name) !== null && of(clip, name) !== "");
  $("facts").replaceChildren(...facts.flatMap((name) => [element("dt", {textContent: name}), fact(clip, name)]));
  $("previous").disabled = index === 0;
  $("next").disabled = index === shown.length - 1;
  $("takes").disabled = index >= inList;
  if (!$("clip").open) $("clip").showModal();
  history.replaceState(null, "", `#row-${of(clip, "row")}`);
  showStars();
}

function fact(clip, name) {
  const value = of(clip, name);
  if (name === "video_path") return element("dd", {}, element("a", {href: path(value), textContent: value}));
  if (name === "finished_at") return element("dd", {textContent: new Date(value).toISOString().replace("T", " ").slice(0, 19) + " UTC"});
  if (name === "video_bytes") return element("dd", {textContent: `${(value / 1e6).toFixed(2)} MB`});
  return element("dd", {textContent: name.endsWith("_s") ? `${value} s` : value, dir: "auto"});
}

function close() {
  $("player").replaceChildren();
  const index = opened;
  opened = -1;
  focusCard(index);
}

function focusCard(index) {
  if (index < 0 || index >= shown.length || (view === "grid" && index < inList)) return;
  if (!cards.has(index)) {
    const {host, first} = blockOf(index);
    scrollTo({top: scrollY + host.getBoundingClientRect().top + Math.floor((index - first) / columns) * (cardHeight + GAP) - 80});
    draw();
  }
  cards.get(index)?.querySelector(".poster").focus();
  cards.get(index)?.scrollIntoView({block: "nearest"});
}

function goToAnchor() {
  const wanted = /^#(?:row-(\d+)|clip-([\w-]+))$/.exec(location.hash);
  if (!wanted || opened >= 0) return;
  const is = (clip) => wanted[1] ? of(clip, "row") === Number(wanted[1]) : of(clip, "clip_id") === wanted[2];
  if (!shown.some(is)) {
    if (!clips.some(is)) return;
    $("filters").reset();
    fillValues();
    filter();
  }
  setView("cards");
  focusCard(shown.findIndex(is));
}

// -- the takes of one prompt, as a grid ------------------------------------------------------------------------------

const promptKey = (clip) => JSON.stringify([of(clip, "text_prompt"), of(clip, "image_path")]);

function setView(name) {
  view = name;
  $("as-cards").setAttribute("aria-pressed", name === "cards");
  $("as-grid").setAttribute("aria-pressed", name === "grid");
  $("sweep").hidden = name !== "grid";
  if (name === "grid") fillPrompts();
  layOut();
}

function fillPrompts() {
  const groups = new Map();
  for (const clip of shown.slice(0, inList)) {
    const key = promptKey(clip);
    if (!groups.has(key)) groups.set(key, {clip, n: 0});
    groups.get(key).n++;
  }
  const before = $("prompt").value;
  $("prompt").replaceChildren(...[...groups].map(([key, {clip, n}]) => new Option(`${place(clip)} (${n}): ${of(clip, "text_prompt").slice(0, 120)}`, key)));
  if (groups.has(before)) $("prompt").value = before;
  fillAxes();
}

function takes() {
  return shown.slice(0, inList).filter((clip) => promptKey(clip) === $("prompt").value);
}

/** The axes that differ among the takes of the prompt; the one with most values across. */
function fillAxes() {
  const own = takes();
  const axes = [...PARAMETERS, ...varying(), ...metas()].filter((name) => names.includes(name))
    .map((name) => [name, distinct(name, own).length]).filter(([, n]) => n > 1).sort((a, b) => a[1] - b[1]);
  for (const [id, preferred] of [["rows", axes[0]], ["columns", axes[1]]]) {
    const before = $(id).value;
    fill($(id), "none", axes.map(([name]) => [name, null]));
    $(id).value = axes.some(([name]) => name === before) ? before : preferred?.[0] ?? "";
  }
  drawGrid();
}

function drawGrid() {
  const own = takes().slice(0, MAX_TAKES), rows = $("rows").value, across = $("columns").value;
  const values = (name) => name ? distinct(name, own).map(([value]) => value) : [""];
  const at = (clip, name) => name ? of(clip, name) : "";
  const heads = values(across);
  const head = element("tr", {}, element("td"), ...heads.map((value) => element("th", {scope: "col", textContent: across ? `${across} ${value}` : ""})));
  const body = values(rows).map((row) => element("tr", {},
    element("th", {scope: "row", textContent: rows ? `${rows} ${row}` : ""}),
    ...heads.map((value) => element("td", {}, ...own.filter((clip) => at(clip, rows) === row && at(clip, across) === value).map(takeOf)))));
  $("grid").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

function takeOf(clip) {
  return element("div", {className: "take"},
    posterOf(clip, Math.round(180 / ratio()), () => open(shown.indexOf(clip))),
    element("p", {className: "line"}, starOf(clip), element("span", {textContent: place(clip)})));
}

// -- charts ----------------------------------------------------------------------------------------------------------

const LANE = 16, LABEL = 150, AXIS = 20;
let from = 0, to = 1, end = 1, dragged = null;

function drawCharts() {
  end = Math.max(1, ...charts.lanes.flatMap((lane) => lane.bars.slice(-1).map((bar) => bar[2])));
  if (charts.lanes.some((lane) => lane.bars.length)) $("run").hidden = false;
  if (to <= from || to > end || to === 1) { from = 0; to = end; }
  drawTimeline();
  drawThroughput();
  $("plan").tBodies[0].replaceChildren(...charts.stages.map((line) => element("tr", {},
    ...[["Device class", line.device_class], ["Stage", line.stage], ["Tasks", line.tasks], ["Plan", `${line.planned_s.toPrecision(3)} s`], ["Actual", `${line.actual_s.toPrecision(3)} s`]]
      .map(([label, value], i) => element("td", {className: i > 1 ? "num" : "", textContent: value, "data-label": label})))));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name === "failed" ? "bad" : name}`).trim();
}

function drawTimeline() {
  const canvas = $("timeline"), width = canvas.parentElement.clientWidth, height = AXIS + LANE * charts.lanes.length;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  Object.assign(canvas.style, {width: `${width}px`, height: `${height}px`});
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  draw.font = "11px system-ui, sans-serif";
  const label = Math.min(LABEL, width / 4), x = (s) => label + (s - from) / (to - from) * (width - label);
  draw.fillStyle = colour("quiet");
  for (let i = 0; i <= 4; i++) {
    draw.textAlign = i === 4 ? "right" : "left";
    draw.fillText(duration(from + (to - from) * i / 4), label + (width - label) * i / 4, 13);
  }
  charts.lanes.forEach((lane, number) => {
    const y = AXIS + number * LANE;
    for (const [kind, start, stop] of lane.bars) {
      if (stop < from || start > to) continue;
      draw.fillStyle = colour(kind);
      const left = Math.max(label, x(start));
      draw.fillRect(left, y + 2, Math.max(0.5, Math.min(width, x(stop)) - left), LANE - 4);
    }
    draw.fillStyle = colour("text");
    draw.textAlign = "left";
    draw.fillText(`${lane.worker} ${lane.device}`.slice(0, Math.floor(label / 6)), 2, y + 12);
  });
}

function zoom(by, at = 0.5) {
  const span = Math.min(end, Math.max(0.01, (to - from) * by)), middle = from + (to - from) * at;
  from = Math.max(0, Math.min(end - span, middle - span * at));
  to = from + span;
  drawTimeline();
}

function move(share) {
  const span = to - from;
  from = Math.max(0, Math.min(end - span, from + span * share));
  to = from + span;
  drawTimeline();
}

function share(event) {
  const box = $("timeline").getBoundingClientRect(), label = Math.min(LABEL, box.width / 4);
  return Math.max(0, Math.min(1, (event.clientX - box.left - label) / (box.width - label)));
}

function point(event) {
  if (dragged !== null) {
    const now = share(event);
    move(dragged - now);
    dragged = now;
    return;
  }
  const box = $("timeline").getBoundingClientRect();
  const lane = charts.lanes[Math.floor((event.clientY - box.top - AXIS) / LANE)], at = from + (to - from) * share(event);
  const bar = lane?.bars.find(([, start, stop]) => start <= at && at <= stop);
  if (lane) $("bar").textContent = `${lane.worker} (${lane.device} on ${lane.node}): ` + (bar ? `${bar[0]}, ${bar[3]} task${bar[3] === 1 ? "" : "s"}, ${duration(bar[1])} to ${duration(bar[2])}` : "idle");
}

function duration(seconds) {
  const whole = Math.round(seconds), pad = (value) => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
}

function drawThroughput() {
  const last = charts.finished[charts.finished.length - 1] ?? [0, 0], planned = charts.planned_s;
  const right = Math.max(1, last[0], planned ?? 0), top = Math.max(1, charts.clips);
  const line = (points, name) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    made.setAttribute("points", points.map(([s, n]) => `${(s / right * 400).toFixed(1)},${(138 - n / top * 134).toFixed(1)}`).join(" "));
    made.setAttribute("class", name);
    return made;
  };
  $("throughput").replaceChildren(line(charts.finished, "actual"), ...planned ? [line([[0, 0], [planned, charts.clips]], "planned")] : []);
  $("throughput-caption").textContent = `Clips finished over time: ${last[1]} of ${charts.clips} in ${duration(last[0])}` + (planned ? `; planned for ${duration(planned)} (dashed)` : "");
  $("throughput-end").textContent = duration(right);
}

// -- live ------------------------------------------------------------------------------------------------------------

function tell(message) {
  $("live").hidden = !message;
  $("live").textContent = message;
}

function remaining(progress) {
  if (!progress.remaining) return "";
  const {expected_s, low_s, high_s} = progress.remaining;
  return `, ${duration(expected_s)} left (${duration(low_s)} to ${duration(high_s)})`;
}

function follow() {
  const events = new EventSource("events");
  events.addEventListener("progress", (event) => {
    const progress = JSON.parse(event.data);
    const working = progress.devices.filter((device) => device.state === "busy").length;
    if (progress.state === "ended") tell("");
    else tell(`${progress.state}: ${progress.done} of ${progress.clips} done, ${progress.failed} failed, ${working} of ${progress.devices.length} devices busy${remaining(progress)}`);
  });
  events.addEventListener("report", refresh);
  events.addEventListener("stars", (event) => { stars = new Set(JSON.parse(event.data)); showStars(); });
}

/** Take over a newer report: its figures and its clips; filters, view, zoom and the place on the page stay. */
async function refresh() {
  const answer = await fetch(location.pathname, {cache: "no-store"});
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  $("overview").replaceChildren(...document.adoptNode(page.getElementById("overview")).childNodes);
  await load(page);
  fillFilters();
  filter();
  drawCharts();
}

// -- start -----------------------------------------------------------------------------------------------------------

function typing() {
  return /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("clip").open) {
    if (event.target.tagName === "VIDEO") return;
    if (event.key === "ArrowLeft") open(opened - 1);
    else if (event.key === "ArrowRight") open(opened + 1);
    else if (event.key === "s") toggleStar(shown[opened]);
    return;
  }
  if (typing()) return;
  if (event.key === "/") { event.preventDefault(); $("search").focus(); return; }
  const card = document.activeElement?.closest(".clip");
  if (!card) return;
  const index = Number(card.dataset.index);
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  if (step && shown[index + step]) { event.preventDefault(); focusCard(index + step); }
  else if (event.key === "s") toggleStar(shown[index]);
}

function onTimelineKey(event) {
  const action = {"+": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2)}[event.key];
  if (action) { event.preventDefault(); event.stopPropagation(); action(); }
}

function listen() {
  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
  $("search").addEventListener("input", soon);
  for (const id of ["status", "model_name", "device", "value", "starred"]) $(id).addEventListener("change", filter);
  $("column").addEventListener("change", () => { fillValues(); filter(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("as-cards").addEventListener("click", () => setView("cards"));
  $("as-grid").addEventListener("click", () => setView("grid"));
  $("prompt").addEventListener("change", fillAxes);
  for (const id of ["rows", "columns"]) $(id).addEventListener("change", drawGrid);
  $("picks").addEventListener("click", downloadPicks);
  $("previous").addEventListener("click", () => open(opened - 1));
  $("next").addEventListener("click", () => open(opened + 1));
  $("star").addEventListener("click", () => toggleStar(shown[opened]));
  $("takes").addEventListener("click", () => {
    const key = promptKey(shown[opened]);
    $("clip").close();
    setView("grid");
    $("prompt").value = key;
    fillAxes();
  });
  $("close").addEventListener("click", () => $("clip").close());
  $("clip").addEventListener("close", close);
  addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
  addEventListener("resize", () => requestAnimationFrame(() => { layOut(); drawTimeline(); }));
  addEventListener("hashchange", goToAnchor);
  addEventListener("keydown", onKey);
  const zooms = {in: () => zoom(0.5), out: () => zoom(2), left: () => move(-0.2), right: () => move(0.2), all: () => { from = 0; to = end; drawTimeline(); }};
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", zooms[button.dataset.zoom]);
  const canvas = $("timeline");
  canvas.addEventListener("keydown", onTimelineKey);
  canvas.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, share(event)); } }, {passive: false});
  canvas.addEventListener("pointerdown", (event) => { dragged = share(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("pointermove", point);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTimeline);
}

async function start() {
  isServed = document.documentElement.dataset.served !== undefined;
  await load(document);
  $("filters").hidden = false;
  fillFilters();
  listen();
  filter();
  drawCharts();
  await loadStars();
  goToAnchor();
  if (isServed) follow();
  else if ("running" in $("data").dataset) tell("The job was running when this page was written. Reload it for newer clips, or watch it live: ovi-ray serve");
  document.documentElement.dataset.ready = "";
}

start().catch((error) => tell(`The clips cannot be shown: ${error.message}`));
