"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CAUSES = ["call", "lock", "cpu", "runqueue", "pagefault", "gil", "gc", "import", "unknown"];
const WORDS = { call: "blocking call", runqueue: "no CPU", pagefault: "page fault", gil: "GIL", gc: "garbage collection", unknown: "not known" };

/* ---- small things ---- */
function el(name, props, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(props || {})) {
    if (k === "text") e.textContent = v;
    else if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v !== undefined && v !== false) e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}
function three(x) { return x >= 100 ? x.toFixed(0) : x >= 10 ? +x.toFixed(1) : +x.toFixed(2); }
function dur(ns) {
  if (ns < 1e3) return ns + " ns";
  if (ns < 999500) return three(ns / 1e3) + " us";
  if (ns < 999.5e6) return three(ns / 1e6) + " ms";
  if (ns < 60e9) return three(ns / 1e9) + " s";
  if (ns < 3600e9) return three(ns / 60e9) + " min";
  return three(ns / 3600e9) + " h";
}
const count = (n, one) => n.toLocaleString("en") + " " + one + (n === 1 ? "" : "s");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
let colours = {};
function readColours() {
  colours = {};
  for (const n of [...CAUSES, "stopped", "fg", "bg", "soft", "line", "panel", "accent", "own", "lib", "sel"]) colours[n] = css(n);
}
function sized(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  g.font = "12px system-ui, sans-serif";
  g.textBaseline = "middle";
  return [g, width];
}
const tip = $("tip");
function showTip(x, y, lines) {
  tip.replaceChildren(...lines.map((l) => el("div", { text: l })));
  tip.hidden = false;
  const w = tip.offsetWidth, h = tip.offsetHeight;
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - w - 8)) + "px";
  tip.style.top = (y + 16 + h > innerHeight ? y - h - 10 : y + 16) + "px";
}
const hideTip = () => { tip.hidden = true; };
const chosen = { site: -1, track: -1, mark: -1 };

/* ---- heading and verdict ---- */
function clock(us, seconds) {
  const t = new Date(us / 1000);
  return isNaN(t) ? "?" : t.toISOString().slice(11, seconds ? 19 : 23);
}
function subject() {
  const parts = data.runs.slice(0, 3).map((r) => {
    const words = [el("code", { text: r.command.join(" ") })];
    const more = [r.host && "host " + r.host, r.started && r.started.replace("T", " ").replace(/\.\d+/, ""), r.length && dur(r.length), r.threshold && "threshold " + dur(r.threshold),
      r.exit !== undefined && "exit status " + r.exit, r.signal !== undefined && "killed by signal " + r.signal, !r.ended && "not ended"].filter(Boolean);
    words.push("  " + more.join(" \u00b7 "));
    return el("span", {}, ...words, document.createElement("br"));
  });
  $("subject").replaceChildren(...parts);
  if (data.runs.length > 3) $("subject").append("and " + (data.runs.length - 3) + " more recordings");
  if (data.runs.length) document.title = "unblock: " + data.runs[0].command.slice(0, 3).join(" ").slice(0, 80);
}
function verdict() {
  const v = data.verdict, busy = data.loops.filter((l) => l.observed), tile = (value, label, kind) =>
    el("div", { class: "tile " + (kind || "") }, el("b", { text: value }), el("span", { text: label }));
  const tiles = v.n ? [tile(v.n.toLocaleString("en"), v.n === 1 ? "stall" : "stalls", "bad"), tile(dur(v.total), "lost", "bad"), tile(dur(v.max), "longest", "bad")]
    : [tile("none", "stalls", "good")];
  tiles.push(tile((data.sites.length + data.moreSites).toLocaleString("en"), "call sites"));
  if (busy.length) {
    const top = busy.reduce((a, b) => (a.busy / a.observed > b.busy / b.observed ? a : b));
    tiles.push(tile((100 * top.busy / top.observed).toFixed(1) + " %", "busiest loop"), tile(dur(Math.max(...busy.map((l) => l.p99))), "p99 of turns"));
  }
  const rest = [["startup", "at start-up"], ["stopped", "while stopped"], ["suppressed", "suppressed"], ["unclear", "that may have been several short turns each"]].filter(([k]) => data[k].n)
    .map(([k, w]) => `${data[k].n.toLocaleString("en")} more ${w}, ${dur(data[k].total)}: not counted`);
  if (v.ongoing) rest.unshift(count(v.ongoing, "stall") + " not over at the end");
  $("verdict").replaceChildren(el("div", { class: "tiles" }, ...tiles), ...rest.map((t) => el("div", { class: "soft", text: t })));
}

/* ---- timeline ---- */
const tracks = data.tracks.map((t) => {
  const n = t.marks.length / 3, at = new Float64Array(n), len = new Float64Array(n), site = new Uint32Array(n);
  let longest = 0;
  for (let i = 0; i < n; i++) { at[i] = t.marks[3 * i]; len[i] = t.marks[3 * i + 1]; site[i] = t.marks[3 * i + 2]; longest = Math.max(longest, len[i]); }
  t.marks = null;
  return { ...t, n, at, len, site, longest, name: [t.program, t.thread !== t.program && t.thread].filter(Boolean).join(" ") };
});
const view = { a: 0, b: data.length };
const TRACK = 56, SHOWN = 40;
const worst = Math.max(1, ...tracks.map((t) => t.longest));
const least = Math.max(1, Math.min(...data.runs.map((r) => r.threshold || 1e12), worst * 1000) / 1000);
const tall = (us) => 7 + (TRACK - 12) * Math.max(0, Math.log(Math.max(us, least) / least) / Math.log(Math.max(worst / least, 1.01)));
const x_of = (us, w) => (us - view.a) / (view.b - view.a) * w;
function first(t, us) { let lo = 0, hi = t.n; while (lo < hi) { const m = (lo + hi) >> 1; if (t.at[m] < us) lo = m + 1; else hi = m; } return lo; }
function matches(i) { return !hidden || !hidden.has(i); }
let hidden = null;

function drawTrack(t) {
  const [g, w] = sized(t.canvas, TRACK), step = data.length / data.buckets;
  for (const [i, , , max] of t.sums) {
    const x = x_of(i * step, w), x2 = x_of((i + 1) * step, w), h = tall(max / 1000);
    if (x2 < 0 || x > w) continue;
    g.fillStyle = colours.lib;
    g.fillRect(x, TRACK - h, Math.max(1, x2 - x), h);
  }
  for (let i = first(t, view.a - t.longest); i < t.n && t.at[i] <= view.b; i++) {
    if (t.at[i] + t.len[i] < view.a) continue;
    const x = x_of(t.at[i], w), x2 = x_of(t.at[i] + t.len[i], w), h = tall(t.len[i]);
    g.globalAlpha = matches(t.site[i]) ? 1 : .12;
    g.fillStyle = colours[data.sites[t.site[i]].cause] || colours.unknown;
    g.fillRect(x, TRACK - h, Math.max(2, x2 - x), h);
  }
  g.globalAlpha = 1;
  const i = chosen.mark;
  if (chosen.track >= 0 && tracks[chosen.track] === t && i >= 0) {
    const x = x_of(t.at[i], w), x2 = Math.max(x + 2, x_of(t.at[i] + t.len[i], w)), h = tall(t.len[i]);
    g.strokeStyle = colours.fg; g.lineWidth = 2;
    g.strokeRect(x - 2, TRACK - h - 2, x2 - x + 4, h + 4);
    g.beginPath(); g.moveTo(x - 4, 1); g.lineTo(x2 + 4, 1); g.lineTo((x + x2) / 2, 6); g.closePath(); g.fillStyle = colours.fg; g.fill();
  }
  if (t.drag) {
    g.fillStyle = colours.accent; g.globalAlpha = .2;
    g.fillRect(Math.min(t.drag[0], t.drag[1]), 0, Math.abs(t.drag[1] - t.drag[0]), TRACK);
    g.globalAlpha = 1;
  }
}
function drawAxis() {
  if (!axis) return;
  const [g, w] = sized(axis, 20), span = view.b - view.a, want = Math.max(2, Math.floor(w / 110));
  let step = Math.pow(10, Math.floor(Math.log10(span / want)));
  for (const m of [1, 2, 5, 10]) if (span / (step * m) <= want) { step *= m; break; }
  g.fillStyle = colours.soft;
  const wall = span <= 20e6 || span >= 86400e6, zero = wall ? data.begin : 0; /* round moments, or round times since the first stall */
  for (let t = Math.ceil((zero + view.a) / step) * step - zero; t <= view.b; t += step) {
    const x = x_of(t, w), text = !wall && span < 86400e6 ? "+" + dur(Math.round(t / 1000) * 1e6) : span >= 86400e6 ? new Date((data.begin + t) / 1000).toISOString().slice(5, 16).replace("T", " ") : clock(data.begin + t);
    g.fillRect(x, 0, 1, 4);
    if (x + g.measureText(text).width + 4 < w) g.fillText(text, x + 3, 11);
  }
}
let axis = null, pending = false;
function drawTimeline() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; tracks.slice(0, SHOWN).forEach(drawTrack); drawAxis(); });
}
function zoom(a, b) {
  const span = Math.max(10, Math.min(b - a, data.length));
  view.a = Math.max(0, Math.min(a, data.length - span));
  view.b = view.a + span;
  drawTimeline();
}
function zoomAt(x, factor) { const span = (view.b - view.a) * factor; zoom(x - (x - view.a) * factor, x - (x - view.a) * factor + span); }
function hit(t, x, w) {
  const lo = view.a + (x - 4) / w * (view.b - view.a), hi = view.a + (x + 4) / w * (view.b - view.a);
  let best = -1;
  for (let i = first(t, lo - t.longest); i < t.n && t.at[i] <= hi; i++)
    if (t.at[i] + t.len[i] >= lo && matches(t.site[i]) && (best < 0 || t.len[i] > t.len[best])) best = i;
  return best;
}
function buildTimeline() {
  const box = $("timeline");
  if (!tracks.length) { box.replaceChildren(el("p", { class: "soft", text: " No stall to show." })); box.removeAttribute("tabindex"); return; }
  box.replaceChildren();
  tracks.slice(0, SHOWN).forEach((t, k) => {
    const sums = t.sums.reduce((n, s) => n + s[1], 0);
    t.canvas = el("canvas", { "aria-hidden": "true" });
    box.append(el("div", { class: "track" }, el("div", {}, el("b", { text: t.name }), el("div", { class: "soft", text: `${t.kind || ""} ${t.pid}${t.tid !== t.pid ? "/" + t.tid : ""}${t.host && data.runs.length > 1 ? " on " + t.host : ""}, ${count(t.n + sums, "stall")}` })), t.canvas));
    let down = null;
    const at = (e) => e.clientX - t.canvas.getBoundingClientRect().left;
    t.canvas.addEventListener("pointerdown", (e) => { if (e.button === 0) { down = at(e); t.canvas.setPointerCapture(e.pointerId); } });
    t.canvas.addEventListener("pointermove", (e) => {
      const x = at(e), w = t.canvas.clientWidth;
      if (down !== null && Math.abs(x - down) > 5) { t.drag = [down, x]; drawTimeline(); hideTip(); return; }
      const i = hit(t, x, w);
      if (i >= 0) { const s = data.sites[t.site[i]]; showTip(e.clientX, e.clientY, [dur(t.len[i] * 1000) + "  " + s.what, clock(data.begin + t.at[i]) + " UTC, site " + s.id]); return; }
      const b = t.sums.find((s) => s[0] === Math.floor((view.a + x / w * (view.b - view.a)) / data.length * data.buckets));
      if (b) showTip(e.clientX, e.clientY, [`${count(b[1], "shorter stall")}, ${dur(b[2])} in all, longest ${dur(b[3])}`]); else hideTip();
    });
    t.canvas.addEventListener("pointerleave", hideTip);
    t.canvas.addEventListener("pointerup", (e) => {
      const x = at(e), w = t.canvas.clientWidth, to = (p) => view.a + p / w * (view.b - view.a);
      if (t.drag) zoom(to(Math.min(...t.drag)), to(Math.max(...t.drag)));
      else if (down !== null) { const i = hit(t, x, w); if (i >= 0) select(k, i); }
      down = t.drag = null; drawTimeline();
    });
    t.canvas.addEventListener("dblclick", () => zoom(0, data.length));
    t.canvas.addEventListener("wheel", (e) => { if (!e.ctrlKey && !e.shiftKey) return; e.preventDefault(); zoomAt(view.a + at(e) / t.canvas.clientWidth * (view.b - view.a), e.deltaY > 0 ? 1.25 : .8); }, { passive: false });
  });
  axis = el("canvas", { "aria-hidden": "true" });
  box.append(el("div", { class: "track axis" }, el("div", { class: "soft", text: new Date(data.begin / 1000).toISOString().slice(0, 10) + " UTC" }), axis));
  const left = tracks.reduce((n, t) => n + t.sums.reduce((m, s) => m + s[1], 0), 0);
  if (left + data.leftOut > 0) box.after(el("p", { class: "hint", text: `The longest ${tracks.reduce((n, t) => n + t.n, 0).toLocaleString("en")} are drawn one by one, ${left.toLocaleString("en")} shorter ones as grey sums${data.leftOut ? ", " + data.leftOut.toLocaleString("en") + " of the shortest not at all" : ""}.` }));
  if (tracks.length > SHOWN) box.after(el("p", { class: "hint", text: `and ${tracks.length - SHOWN} more loops with stalls` }));
  const used = CAUSES.filter((c) => data.sites.some((s) => s.cause === c));
  $("legend").replaceChildren(...used.map((c) => { const dot = el("i", { class: "dot" }); dot.style.background = `var(--${c})`; return el("li", {}, dot, WORDS[c] || c); }));
  box.addEventListener("keydown", (e) => {
    if (e.key === "ArrowRight") step(1); else if (e.key === "ArrowLeft") step(-1);
    else if (e.key === "ArrowDown" || e.key === "ArrowUp") { const k = Math.max(0, Math.min(tracks.length - 1, chosen.track + (e.key === "ArrowDown" ? 1 : -1))); if (tracks[k].n) select(k, Math.max(0, Math.min(tracks[k].n - 1, first(tracks[k], chosen.track >= 0 ? tracks[chosen.track].at[chosen.mark] : 0)))); }
    else if (e.key === "Enter" && chosen.site >= 0) { const row = document.querySelector("#sites tr[aria-selected=true]"); if (row) row.focus(); }
    else return;
    e.preventDefault();
  });
}
function step(by) {
  if (!tracks.length) return;
  let k = Math.max(0, chosen.track), i = chosen.track < 0 ? (by > 0 ? -1 : tracks[k].n) : chosen.mark;
  for (i += by; ; i += by) {
    if (i < 0 || i >= tracks[k].n) { k += by; if (k < 0 || k >= tracks.length) return; i = by > 0 ? 0 : tracks[k].n - 1; if (!tracks[k].n) continue; }
    if (matches(tracks[k].site[i])) break;
  }
  select(k, i);
}

/* ---- details ---- */
function frameRows(s) {
  let marked = false;
  return el("table", { class: "rows mono" }, ...s.where.map(([f, n]) => {
    const [name, place, own] = data.frames[f];
    const arrow = own && !marked ? (marked = true, "\u2190 " + n + " of " + s.samples + " samples") : n < s.samples ? n + " of " + s.samples : "";
    return el("tr", {}, el("td", { text: place }), el("td", {}, el(own ? "b" : "span", { text: name })), el("td", { class: "n", text: arrow }));
  }));
}
function details() {
  const box = $("details"), s = data.sites[chosen.site];
  if (!s) { box.hidden = true; return; }
  const t = tracks[chosen.track], i = chosen.mark, facts = el("dl", { class: "facts" }), fact = (k, v) => facts.append(el("dt", { text: k }), el("dd", {}, v));
  const one = t && i >= 0 && t.site[i] === chosen.site;
  if (one) fact("when", `${clock(data.begin + t.at[i])} UTC, ${t.name} pid ${t.pid}`);
  fact("why", s.why + (s.n > 1 ? " (the longest of " + s.n.toLocaleString("en") + ")" : ""));
  if (s.where.length) fact("where", frameRows(s));
  for (const k of ["await", "cost", "pool", "serves", "input"]) if (s[k]) fact(k, s[k]);
  fact("lost", `${dur(s.total)} in ${count(s.n, "stall")}, p50 ${dur(s.p50)}, p99 ${dur(s.p99)}, longest ${dur(s.max)}` + (s.ongoing ? ", " + s.ongoing + " not over" : ""));
  if (s.do) fact("do", s.do);
  fact("site", el("code", { text: s.id + (s.program ? "  " + s.program : "") + (s.loop ? "  " + s.loop : "") }));
  box.replaceChildren(el("button", { class: "close noprint", type: "button", text: "Close", onclick: () => { choose(-1); } }),
    el("h3", {}, one ? "BLOCKED " + dur(t.len[i] * 1000) + "  " : "", s.what), facts);
  box.hidden = false;
}
function choose(site) {
  chosen.site = site;
  if (chosen.track >= 0 && (site < 0 || tracks[chosen.track].site[chosen.mark] !== site)) chosen.track = chosen.mark = -1;
  for (const row of document.querySelectorAll("#sites tbody tr")) row.setAttribute("aria-selected", row.dataset.site === String(site));
  details();
  drawTimeline();
}
function select(track, mark) {
  const t = tracks[track];
  chosen.track = track; chosen.mark = mark;
  if (t.at[mark] < view.a || t.at[mark] > view.b) { const span = view.b - view.a; zoom(t.at[mark] - span / 2, t.at[mark] + span / 2); }
  choose(t.site[mark]);
}

/* ---- the table ---- */
const COLUMNS = [["lost", "total"], ["stalls", "n"], ["p50", "p50"], ["p99", "p99"], ["max", "max"], ["cause", "cause"], ["what", "what"], ["where", "file"], ["site", "id"]];
const FEW = 20, ROWS = 300;
let rows = FEW;
let order = { key: "total", down: true }, shown = [];
const haystack = data.sites.map((s) => [s.what, s.why, s.cause, WORDS[s.cause], s.id, s.program, s.thread, s.loop, s.file, s.do, ...new Set(s.stacks.flatMap((k) => k[1].flatMap((f) => data.frames[f].slice(0, 2))))].filter(Boolean).join("\n").toLowerCase());
function table() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = data.sites.map((_, i) => i).filter((i) => words.every((w) => haystack[i].includes(w)));
  hidden = words.length ? new Set(data.sites.map((_, i) => i).filter((i) => !shown.includes(i))) : null;
  const k = order.key;
  shown.sort((a, b) => { const x = data.sites[a][k] ?? "", y = data.sites[b][k] ?? ""; const c = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)); return order.down ? -c : c; });
  $("found").textContent = words.length ? `${shown.length} of ${data.sites.length}` : "";
  const most = Math.max(1, ...data.sites.map((s) => s.total));
  document.querySelector("#sites thead").replaceChildren(el("tr", {}, ...COLUMNS.map(([label, key], c) => el("th", { scope: "col", class: c < 5 ? "num" : "", "aria-sort": order.key === key && (order.down ? "descending" : "ascending") },
    el("button", { type: "button", text: label, onclick: () => { order = { key, down: order.key === key ? !order.down : c < 5 }; table(); } })))));
  document.querySelector("#sites tbody").replaceChildren(...shown.slice(0, rows).map((i) => {
    const s = data.sites[i], share = el("i", { class: "share" }), dot = el("i", { class: "dot" });
    share.style.width = Math.max(2, 100 * s.total / most) + "%"; share.style.background = dot.style.background = `var(--${s.cause})`;
    const num = (v, label) => el("td", { class: "num", "data-label": label, text: v });
    const lost = num(dur(s.total), "lost"); lost.append(share);
    return el("tr", { tabindex: "0", "data-site": i, "aria-selected": String(i === chosen.site), onclick: () => choose(i), onkeydown: (e) => { if (e.key === "Enter") { choose(i); $("details").scrollIntoView({ block: "nearest" }); } } },
      lost, num(s.n.toLocaleString("en"), s.n === 1 ? "stall" : "stalls"), num(dur(s.p50), "p50"), num(dur(s.p99), "p99"), num(dur(s.max), "max"), el("td", {}, dot, s.cause), el("td", { class: "what", text: s.what }),
      el("td", { class: "mono", text: s.file || "" }), el("td", { class: "mono soft", text: s.id }));
  }));
  const rest = shown.length - rows, more = $("more");
  more.replaceChildren();
  if (rest > 0) more.append(el("button", { type: "button", class: "noprint", text: rows < ROWS ? `Show ${Math.min(rest, ROWS - rows)} more` : "", hidden: rows >= ROWS, onclick: () => { rows = ROWS; table(); } }), ` ${rest.toLocaleString("en")} more call sites${rows >= ROWS ? ": search finds them" : ""}. `);
  if (data.moreSites) more.append(`${data.moreSites.toLocaleString("en")} further ones, which lost least, are not in this file.`);
  drawTimeline(); flame();
}
function moveRow(by) {
  if (shown.indexOf(chosen.site) + by >= rows && rows < ROWS) { rows = ROWS; table(); }
  const at = shown.indexOf(chosen.site), next = shown[Math.max(0, Math.min(shown.length - 1, at < 0 ? 0 : at + by))];
  if (next === undefined) return;
  choose(next);
  const row = document.querySelector(`#sites tr[data-site="${next}"]`);
  if (row) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
}

/* ---- flame graph: outermost on top ---- */
const LINE = 20;
let root = null, zoomed = null, cells = [], focus = null;
function build() {
  const node = (name, place, own) => ({ name, place, own, ns: 0, kids: new Map(), depth: 0, site: -1 });
  root = node("all", "", 0);
  data.sites.forEach((s, i) => {
    if (hidden && hidden.has(i)) return;
    for (const [ns, frames] of s.stacks) {
      let n = root; n.ns += ns;
      const path = [["p:" + (s.program || "?"), s.program || "?", "", 0], ...(frames.length ? frames.map((f) => [f, ...data.frames[f]]) : [["none", "(no stack)", "", 0]])];
      for (const [, name, place, own] of path) {
        const key = name + "\n" + (name === "?" ? place : "");
        let kid = n.kids.get(key);
        if (!kid) { kid = node(name, place, own); kid.parent = n; kid.depth = n.depth + 1; n.kids.set(key, kid); }
        kid.ns += ns; kid.site = i; n = kid;
      }
    }
  });
}
function flame() { build(); zoomed = root; focus = null; drawFlame(); }
function drawFlame() {
  const canvas = $("flame"), chain = [];
  for (let n = zoomed.parent; n; n = n.parent) chain.unshift(n);
  let deepest = 0;
  cells = [];
  const width = Math.max(canvas.clientWidth, 1);
  chain.forEach((n, d) => cells.push({ n, x: 0, w: width, y: d * LINE, outer: true }));
  (function lay(n, x, w, d) {
    cells.push({ n, x, w, y: d * LINE });
    deepest = Math.max(deepest, d);
    let at = x;
    for (const kid of [...n.kids.values()].sort((a, b) => b.ns - a.ns)) {
      const kw = kid.ns / n.ns * w;
      if (kw >= .7) lay(kid, at, kw, d + 1);
      at += kw;
    }
  })(zoomed, 0, width, chain.length);
  const height = (deepest + 1) * LINE + 2;
  canvas.style.height = height + "px";
  const [g] = sized(canvas, height);
  for (const c of cells) {
    g.globalAlpha = c.outer ? .55 : 1;
    g.fillStyle = c.n === focus ? colours.sel : c.n.own ? colours.own : colours.lib;
    g.fillRect(c.x, c.y, Math.max(.5, c.w - 1), LINE - 1);
    if (c.n === focus) { g.strokeStyle = colours.accent; g.lineWidth = 2; g.strokeRect(c.x + 1, c.y + 1, Math.max(1, c.w - 3), LINE - 3); }
    if (c.w > 24) {
      const room = Math.floor((c.w - 8) / 6.4), text = c.n === root ? (root.ns ? "all: " + dur(root.ns) : "no time lost") : c.n.name;
      g.fillStyle = colours.fg;
      g.fillText(text.length > room ? text.slice(0, Math.max(1, room - 1)) + "\u2026" : text, c.x + 4, c.y + LINE / 2);
    }
  }
  g.globalAlpha = 1;
  const n = focus || zoomed;
  $("path").textContent = root.ns ? `${n === root ? "all" : n.name}${n.place ? "  " + n.place : ""}: ${dur(n.ns)}, ${(100 * n.ns / root.ns).toFixed(1)} %` : "";
}
function cellAt(e) {
  const r = $("flame").getBoundingClientRect(), x = e.clientX - r.left, y = e.clientY - r.top;
  return cells.find((c) => x >= c.x && x < c.x + c.w && y >= c.y && y < c.y + LINE);
}
function flameKeys(e) {
  const n = focus || zoomed, kids = (m) => [...m.kids.values()].sort((a, b) => b.ns - a.ns);
  let next = null;
  if (e.key === "ArrowDown") next = kids(n)[0];
  else if (e.key === "ArrowUp") next = n === zoomed ? null : n.parent;
  else if ((e.key === "ArrowRight" || e.key === "ArrowLeft") && n.parent) { const all = kids(n.parent); next = all[all.indexOf(n) + (e.key === "ArrowRight" ? 1 : -1)]; }
  else if (e.key === "Enter") { zoomed = n; next = n; }
  else if (e.key === "Escape") { zoomed = zoomed.parent || root; next = zoomed; }
  else return;
  e.preventDefault();
  if (next) focus = next;
  drawFlame();
}
function buildFlame() {
  const canvas = $("flame");
  canvas.addEventListener("click", (e) => { const c = cellAt(e); if (c) { zoomed = c.n; focus = null; drawFlame(); } });
  canvas.addEventListener("pointermove", (e) => { const c = cellAt(e); if (c && c.n !== root) showTip(e.clientX, e.clientY, [c.n.name + (c.n.place ? "  " + c.n.place : ""), `${dur(c.n.ns)}, ${(100 * c.n.ns / root.ns).toFixed(1)} % of all`]); else hideTip(); });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("keydown", flameKeys);
}

/* ---- loops ---- */
const LAG = 130;
function drawLag(l, canvas) {
  const [g, w] = sized(canvas, LAG), h = LAG - 18, bins = 48, lo = 2, hi = 11; /* 100 ns to 100 s */
  const n = new Float64Array(bins);
  for (let i = 0; i + 1 < l.hist.length; i += 2) n[Math.max(0, Math.min(bins - 1, Math.floor((Math.log10(Math.max(l.hist[i], 1)) - lo) / (hi - lo) * bins)))] += l.hist[i + 1];
  const top = Math.log10(Math.max(...n) + 1), limit = Math.min(...data.runs.map((r) => r.threshold || Infinity));
  for (let i = 0; i < bins; i++) {
    if (!n[i]) continue;
    const y = Math.max(2, Math.log10(n[i] + 1) / top * (h - 4));
    g.fillStyle = Math.pow(10, lo + (i + 1) / bins * (hi - lo)) > limit ? colours.call : colours.cpu;
    g.fillRect(i / bins * w, h - y, w / bins - 1, y);
  }
  g.fillStyle = colours.soft;
  for (const [p, t] of [[3, "1 us"], [5, "100 us"], [7, "10 ms"], [9, "1 s"]]) { const x = (p - lo) / (hi - lo) * w; g.fillRect(x, h, 1, 4); g.fillText(t, x + 3, h + 10); }
  if (isFinite(limit)) { const x = (Math.log10(limit) - lo) / (hi - lo) * w; g.fillStyle = colours.fg; for (let y = 0; y < h; y += 6) g.fillRect(x, y, 1, 3); }
}
const lags = [];
function buildLoops() {
  const box = el("div", { class: "loops" });
  data.loops.slice(0, 24).forEach((l) => {
    const canvas = el("canvas", { role: "img", "aria-label": "Histogram of how long turns took, both scales logarithmic" });
    const facts = l.hist ? `${count(l.turns, "turn")}, p50 ${dur(l.p50)}, p99 ${dur(l.p99)}, p99.9 ${dur(l.p999)}, max ${dur(l.max)}` + (l.observed ? `; busy ${(100 * l.busy / l.observed).toFixed(1)} %` : "") : "no figures were written";
    box.append(el("div", { class: "loop" }, el("h3", { text: `${l.program || "?"} ${l.kind || ""} ${l.pid}${l.tid !== l.pid ? "/" + l.tid : ""}` }), el("p", { text: facts }), l.hist ? canvas : null));
    if (l.hist) lags.push([l, canvas]);
  });
  $("loops").replaceChildren(box, el("p", { class: "hint", text: data.loops.length ? "Both scales are logarithmic; the dotted line is the threshold." : "No event loop was seen." }));
  if (data.loops.length > 24) $("loops").append(el("p", { class: "hint", text: `and ${data.loops.length - 24} more loops` }));
}
function lints() {
  if (!data.lints.length) return;
  $("lints").hidden = false;
  $("lints").querySelector("ul").replaceChildren(...data.lints.map((text) => el("li", { text })));
}

/* ---- what left the loops ---- */
function grid(title, columns, rows) {
  if (!rows.length) return [];
  const cells = (name, row) => el("tr", {}, ...row.map((text, c) => el(name, { class: columns[c][1] || false, text })));
  return [el("p", { class: "soft", text: title }), el("div", { class: "scroll" }, el("table", { class: "grid" },
    el("thead", {}, cells("th", columns.map((c) => c[0]))), el("tbody", {}, ...rows.map((r) => cells("td", r)))))];
}
const placed = ([name, place]) => name === undefined ? "" : name + (place ? "  " + place : "");
function stood(id) { const s = data.sites.find((x) => x.id === id); return s ? [s.what, s.file].filter(Boolean).join("  ") : "site " + id; }
function lagWords(lag) {
  const pair = ([p99, longest]) => `p99 ${dur(p99)}, longest ${dur(longest)}`;
  return lag.measured ? "The loop's lag: " + [pair(lag.measured), lag.moved && `about ${pair(lag.moved)} if they move`,
    lag.policy && `about ${pair(lag.policy)} with the rules for functions that unblock policy writes`, lag.predicted && `predicted ${pair(lag.predicted)} (${lag.from})`].filter(Boolean).join("; ") + "." : "";
}
function offload() {
  const o = data.offload, num = (n) => n.toLocaleString("en");
  if (!o) return;
  const t = o.total, none = (n, f) => n ? f(n) : "", lines = [`Mode: ${o.mode || "?"}. ` + (o.mode === "dry-run" ? "Nothing was moved."
    : t.moved === undefined ? "" : `${count(t.moved, "call")} moved, ${dur(t.saved_ns)} off the loop, ${dur(t.wait_ns)} of it waiting for a thread or the loop; meanwhile ${count(t.beside, "callback")} ran.`)];
  if (t.threads) lines.push(`Executor: ${count(t.threads, "thread")}, busy ${dur(t.busy_ns)}, ${count(t.queued, "call")} queued at most.`);
  if (t.stack) lines.push(`Stacks were used up to ${Math.ceil(t.stack / 1024)} kB.`);
  lines.push(lagWords(o.lag));
  const ran = (m) => [...m.meanwhile.map(([at, kind, n]) => `${placed(at)} (${kind}) ${num(n)}`), m.others && m.meanwhile.length && count(m.others, "other")].filter(Boolean).join("; ");
  $("offload").hidden = false;
  $("offload").querySelector("div").replaceChildren(...lines.filter(Boolean).map((text) => el("p", { text })),
    ...grid("What moved, by place:", [["call"], ["called in"], ["moved", "num"], ["off the loop", "num"], ["longest", "num"], ["waited", "num"], ["ran meanwhile", "num"], ["which"], ["blocked before", "num"], ["for", "num"]],
      o.moved.map((m) => [m.call, placed(m.at), num(m.moved), dur(m.saved_ns), dur(m.longest_ns), dur(m.wait_ns), num(m.beside), ran(m), none(m.first, num), none(m.first, () => dur(m.first_ns))])),
    ...grid("What would move:", [["call"], ["stall"], ["stalls", "num"], ["saves", "num"]], o.would.map((w) => [w.call, stood(w.site), num(w.n), dur(w.saved_ns)])),
    ...grid("What stayed, and why:", [["call"], ["stall"], ["why"], ["lock taken in"], ["stalled", "num"]],
      o.pinned.map((p) => [p.call, stood(p.site), p.reasons.map(([word, words, n]) => `${word} ${num(n)}: ${words}`).join("; "), placed(p.lock), dur(p.ns)])),
    ...(o.hidden ? [el("p", { class: "hint", text: `and ${num(o.hidden)} more places` })] : []));
}
function notes() {
  $("notes").replaceChildren(...data.notes.map((n) => el("p", { class: n.level }, el("b", { text: (n.level === "info" ? "note" : n.level) + ": " }), n.text)), el("p", { class: "soft", text: "Made by " + data.tool }));
}

/* ---- all of it ---- */
function drawAll() { readColours(); drawTimeline(); drawFlame(); for (const [l, c] of lags) drawLag(l, c); }
function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}
const wish = matchMedia("(prefers-color-scheme: dark)");
theme(wish.matches);
wish.addEventListener("change", (e) => { theme(e.matches); drawAll(); });
$("theme").addEventListener("click", () => { theme(document.documentElement.dataset.theme !== "dark"); drawAll(); });
$("help").addEventListener("click", () => $("keys").showModal());
let before = null;
addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; theme(false); readColours(); tracks.slice(0, SHOWN).forEach(drawTrack); drawAxis(); drawFlame(); for (const [l, c] of lags) drawLag(l, c); });
addEventListener("afterprint", () => { theme(before === "dark"); drawAll(); });
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 60); });
let typing = 0;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(table, 80); });
addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $("keys").open) return;
  if (e.target === $("search")) { if (e.key === "Escape") { $("search").value = ""; table(); $("search").blur(); } else if (e.key === "Enter") { table(); moveRow(0); } return; }
  if (e.key === "/") { $("search").focus(); $("search").select(); }
  else if (e.key === "j") moveRow(1); else if (e.key === "k") moveRow(-1);
  else if (e.key === "n") step(1); else if (e.key === "p") step(-1);
  else if (e.key === "+" || e.key === "=" || e.key === "-") zoomAt(chosen.track >= 0 ? tracks[chosen.track].at[chosen.mark] : (view.a + view.b) / 2, e.key === "-" ? 2 : .5);
  else if (e.key === "0") zoom(0, data.length);
  else if (e.key === "t") $("theme").click();
  else if (e.key === "?") $("keys").showModal();
  else if (e.key === "Escape" && e.target.id !== "flame") choose(-1);
  else return;
  e.preventDefault();
});
subject(); verdict(); readColours(); buildTimeline(); buildFlame(); buildLoops(); offload(); lints(); notes(); table(); drawAll();
document.documentElement.dataset.ready = "1";
})();
