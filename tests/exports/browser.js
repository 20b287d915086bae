/* Drives a real Chromium; called by test_html.py and test_speedscope.py: browser.js CHECK FILE [SHOTS].
   Prints one JSON object with what was seen; throws where the browser itself complains. */
"use strict";
const path = require("path");
const { chromium } = require(path.join(process.env.UNBLOCK_NPM, "node_modules/playwright-core"));

const complaints = [];

async function open(browser, file, options) {
  const page = await browser.newPage({ viewport: { width: 1600, height: 900 }, ...options });
  page.on("console", (m) => { if (m.type() === "error") complaints.push(m.text()); });
  page.on("pageerror", (e) => complaints.push(e.message));
  page.on("request", (r) => { if (!r.url().startsWith("file://") && !r.url().startsWith("data:") && !r.url().startsWith("blob:")) complaints.push("network: " + r.url()); });
  const begun = Date.now();
  await page.goto("file://" + file);
  await page.waitForSelector("html[data-ready]", { state: "attached", timeout: 30000 });
  page.ready_ms = Date.now() - begun;
  return page;
}
const text = (page, selector) => page.locator(selector).innerText();
const rows = (page) => page.locator("#sites tbody tr").count();
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

const checks = {
  async use(browser, file, shots) {
    const seen = {}, page = await open(browser, file);
    seen.title = await page.title();
    seen.tiles = await page.locator(".tile").allInnerTexts();
    seen.rows = await rows(page);
    // Click a stall: the first one begins at the left edge.
    const box = await page.locator(".track canvas").first().boundingBox();
    await page.mouse.click(box.x + 1, box.y + box.height - 4);
    seen.clicked = await text(page, "#details");
    await page.mouse.move(box.x + 1, box.y + box.height - 4);
    seen.tip = await text(page, "#tip");
    if (shots) await page.screenshot({ path: path.join(shots, "light-1600.png"), fullPage: true });
    // Keyboard only.
    await page.keyboard.press("Escape");
    seen.closed = await page.locator("#details").isHidden();
    await page.keyboard.press("n"); await page.keyboard.press("n");
    seen.second = await text(page, "#details h3");
    await page.keyboard.press("p");
    seen.back = await text(page, "#details h3");
    await page.keyboard.press("+"); await page.keyboard.press("+"); await page.keyboard.press("0");
    await page.keyboard.press("/");
    await page.keyboard.type("lzf_compress");
    await page.waitForFunction(() => document.getElementById("found").textContent !== "");
    seen.found = [await text(page, "#found"), await rows(page)];
    seen.flame_of_found = await text(page, "#path");
    await page.keyboard.press("Enter");
    seen.chosen = await text(page, "#details h3");
    await page.keyboard.press("/"); await page.keyboard.press("Escape");
    await page.keyboard.press("Escape");
    await page.keyboard.press("j");
    seen.row = await text(page, "#sites tr[aria-selected=true] .what");
    await page.keyboard.press("j");
    seen.row2 = await text(page, "#sites tr[aria-selected=true] .what");
    await page.locator("#flame").focus();
    await page.keyboard.press("ArrowDown"); await page.keyboard.press("Enter");
    seen.flame = await text(page, "#path");
    await page.keyboard.press("Escape");
    seen.flame_back = await text(page, "#path");
    await page.locator("#sites th button").nth(1).click();
    seen.sorted = await text(page, "#sites tbody tr:first-child .what");
    await page.keyboard.press("?");
    seen.help = await page.locator("#keys").isVisible();
    await page.keyboard.press("Escape");
    // Sizes and themes.
    seen.overflow = [];
    for (const [width, scheme] of [[1600, "dark"], [800, "light"], [320, "dark"], [320, "light"]]) {
      const p = await open(browser, file, { viewport: { width, height: 700 }, colorScheme: scheme });
      seen.overflow.push(await overflow(p), await p.evaluate(() => document.getElementById("flamebox").scrollWidth - document.getElementById("flamebox").clientWidth));
      seen[scheme] = await background(p);
      if (shots) { await p.keyboard.press("n"); await p.screenshot({ path: path.join(shots, `${scheme}-${width}.png`), fullPage: true }); }
      await p.close();
    }
    const dark = await background(page);
    await page.keyboard.press("t");
    seen.toggled = dark !== (await background(page));
    seen.pdf = (await page.pdf()).length;
    return seen;
  },

  async hostile(browser, file) {
    const page = await open(browser, file), seen = {};
    await page.keyboard.press("n");
    seen.pwned = await page.evaluate(() => window.pwned || null);
    seen.scripts = await page.evaluate(() => document.scripts.length);
    seen.images = await page.evaluate(() => document.images.length);
    seen.body = (await text(page, "body")).slice(0, 200000);
    seen.overflow = await overflow(page);
    // The policy is in force: what an attacker would have to do is refused.
    seen.inline = await page.evaluate(() => { const s = document.createElement("script"); s.textContent = "window.pwned = 1"; document.body.append(s); return window.pwned || null; });
    seen.fetch = await page.evaluate(() => fetch("https://example.invalid/").then(() => "sent", () => "refused"));
    complaints.length = 0; // the browser said so, as it should
    return seen;
  },

  async large(browser, file) {
    const page = await open(browser, file), seen = { ready_ms: page.ready_ms };
    const timed = async (f) => { const begun = Date.now(); await f(); await page.evaluate(() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))); return Date.now() - begun; };
    seen.zoom_ms = await timed(async () => { for (let i = 0; i < 10; i++) await page.keyboard.press("+"); });
    seen.step_ms = await timed(async () => { for (let i = 0; i < 20; i++) await page.keyboard.press("n"); });
    seen.all_ms = await timed(() => page.keyboard.press("0"));
    seen.search_ms = await timed(async () => { await page.keyboard.press("/"); await page.keyboard.type("site3"); await page.waitForFunction(() => document.getElementById("found").textContent !== ""); });
    seen.tiles = await page.locator(".tile").allInnerTexts();
    seen.hint = await page.locator("#timeline + .hint").innerText();
    return seen;
  },

  /* speedscope's own page with a profile, as its command line opens it. */
  async speedscope(browser, file) {
    const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
    page.on("pageerror", (e) => complaints.push(e.message));
    await page.goto("file://" + file);
    await page.waitForFunction(() => document.title.includes("speedscope") && document.title !== "speedscope", null, { timeout: 30000 }).catch(() => 0);
    return { title: await page.title(), text: await page.evaluate(() => document.body.innerText.slice(0, 3000)) };
  },
};

(async () => {
  const [, , check, file, shots] = process.argv;
  const browser = await chromium.launch({ executablePath: process.env.UNBLOCK_CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const seen = await checks[check](browser, file, shots);
    if (complaints.length) throw new Error("the browser complains: " + complaints.join("; "));
    console.log(JSON.stringify(seen));
  } finally {
    await browser.close();
  }
})().catch((e) => { console.error(e.message); process.exit(1); });
