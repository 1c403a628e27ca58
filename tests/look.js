// What a reader would see wrong on the page as it stands now, in plain words: one list a check.
// tests/browser.py loads it into each page that it opens.
(() => {
  const all = (sel, root = document) => [...root.querySelectorAll(sel)];
  const short = s => s.replace(/\s+/g, " ").trim().slice(0, 70);
  const name = e => {
    const said = e.getAttribute("aria-label") || e.getAttribute("alt") || e.textContent || e.getAttribute("src") || "";
    return `<${e.tagName.toLowerCase()}${e.id ? "#" + e.id : e.classList.length ? "." + e.classList[0] : ""}> ${short(said)}`;
  };
  const inherited = (first, step) => {  // a value that each element has from its parent's; asked once an element
    const known = new Map([[document.documentElement, first]]);
    const of = e => { if (!known.has(e)) known.set(e, step(e, of(e.parentElement))); return known.get(e); };
    return of;
  };
  const shown = e => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && e.getClientRects().length > 0;

  const math = () => {
    const left = all(".math").filter(e => !e.querySelector(".katex")).map(e => `not rendered: ${short(e.textContent)}`);
    const wrong = all(".katex-error").map(e => `KaTeX: ${e.title || short(e.textContent)}`);
    return [...left, ...wrong, ...rawText()];
  };
  // TeX or Markdown that was meant to be rendered: a pair of $ as Pandoc reads it, \( or \[, a \command, a link or bold left as typed
  const raw = /\$(?=\S)[^$]*?\S\$(?!\d)|\\[([]|\\[a-zA-Z]{2,}\b|\]\([\w#.:\/-]+\)|\*\*\w[^*]*\*\*/;
  const rawText = () => {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walk.nextNode()) {
      const text = walk.currentNode, m = text.data.match(raw);
      if (m && !text.parentElement.closest("code, pre, script, style, .katex, .math, .cell-output, kbd")) found.push(`left as typed: ${short(m[0])}`);
    }
    return found;
  };
  const pictures = () => all("img").flatMap(e => [
    ...(e.complete && e.naturalWidth > 0 ? [] : [`not loaded: ${name(e)}`]),
    ...((e.getAttribute("alt") || "").trim() ? [] : [`no alt text: ${(e.getAttribute("src") || "").slice(0, 50)}`])]);

  // wider than the window, or cut off at its edge; a table or a line of code may be wider inside a box that scrolls
  const wide = () => {
    const edge = innerWidth + 1, page = document.documentElement.scrollWidth;
    const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX) && e.getBoundingClientRect().right <= edge;
    const held = inherited(false, (e, above) => above || scrolls(e));
    const out = e => { const r = e.getBoundingClientRect(); return r.right > edge && r.left < r.right && r.height > 1; };
    const found = all("body *").filter(e => !e.closest(".katex-mathml, svg, #quarto-sidebar") && out(e) && !held(e) && shown(e) && getComputedStyle(e).position !== "fixed");
    return [...(page > innerWidth ? [`the page is ${page} pixels wide`] : []), ...found.slice(0, 5).map(e => `out of the window: ${name(e)}`)];
  };
  Object.assign(window, { math, pictures, wide });

  // contrast of every text with what is behind it, as WCAG AA counts it; axe does the same, in a minute for a page with 60,000 elements
  const channels = c => { const n = c.match(/[\d.]+/g).map(Number); return c.startsWith("color(") ? [...n.slice(0, 3).map(v => 255 * v), n[3] ?? 1] : [...n.slice(0, 3), n[3] ?? 1]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const contrasts = () => {
    const behind = inherited([255, 255, 255], (e, under) => over(channels(getComputedStyle(e).backgroundColor), under));
    const opaque = inherited(1, (e, above) => above * getComputedStyle(e).opacity);
    const bad = new Set(), maths = inherited(false, (e, inside) => inside ? "inner" : e.matches(".katex-html") && "outer");
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const e = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || maths(e) === "inner" || e.closest("script, style, .katex-mathml") || !shown(e)) continue;
      const s = getComputedStyle(e), [r, g, b, a] = channels(s.color), ink = over([r, g, b, a * opaque(e)], behind(e));
      const [hi, lo] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (hi + .05) / (lo + .05), size = parseFloat(s.fontSize);
      const wanted = size >= 24 || (size >= 18.66 && s.fontWeight >= 700) ? 3 : 4.5;
      if (ratio < wanted) bad.add(`contrast ${ratio.toFixed(2)}, wanted ${wanted}: ${s.color} on ${behind(e).map(Math.round)}: ${name(e)}`);
    }
    return [...bad];
  };
  window.contrasts = contrasts;

  // the same page with less of the same in it, so that axe is done in a second: a few formulas, one token of each colour, the first rows of each table
  window.thin = () => {
    all(".katex").slice(5).forEach(e => e.replaceWith("formula"));
    const seen = new Set();
    all("pre span[class]").forEach(e => seen.has(e.className) ? e.replaceWith(e.textContent) : seen.add(e.className));
    all("pre code").forEach(e => e.normalize());
    all("tbody").forEach(b => [...b.rows].slice(5).forEach(r => r.remove()));
  };

  // everything that a mouse can work must be reached by Tab, be seen when it is reached, and show that it has the focus
  const works = ["a[href]", "button", "input", "select", "textarea", "summary", "[onclick]", "[role=button]", "[data-bs-toggle]"].map(s => s + ":not([aria-hidden=true])").join();
  const lit = e => {
    const s = getComputedStyle(e);
    return (s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== "none";
  };
  const inWindow = e => { const r = e.getBoundingClientRect(); return r.right > 0 && r.bottom > 0 && r.left < innerWidth && r.top < innerHeight; };
  const still = document.createElement("style");
  still.textContent = "*, *::before, *::after { transition: none !important; animation: none !important; scroll-behavior: auto !important; }";
  document.head.appendChild(still);
  const met = new Map();
  window.watchTabs = () => {
    met.clear();
    document.activeElement.blur();
    document.addEventListener("focusin", ev => {
      const e = ev.target;
      if (!met.has(e)) met.set(e, [...(shown(e) && inWindow(e) ? [] : [`not seen with the focus: ${name(e)}`]), ...(lit(e) ? [] : [`the focus does not show: ${name(e)}`])]);
    });
    return 0;
  };
  // the same by its looks, which is quick on a page with thousands of links: nothing is out of the order, and one of each sort shows its focus. A key must have been pressed before, or the browser shows none
  window.reachable = () => {
    const open = all(works).filter(e => !e.disabled && shown(e)), sorts = new Map(open.map(e => [`${e.tagName}.${e.className}`, e]));
    const out = open.filter(e => e.tabIndex < 0 || e.closest("[inert]")).map(e => `Tab does not reach: ${name(e)}`);
    const dark = [...sorts.values()].filter(e => { e.focus({ preventScroll: true }); return document.activeElement === e && !lit(e); });
    document.activeElement.blur();
    return [...out, ...dark.map(e => `the focus does not show: ${name(e)}`)];
  };
  window.tabsMet = () => met.size;
  window.tabsWrong = () => {
    const missed = all(works).filter(e => !e.disabled && shown(e) && !met.has(e)).map(e => `Tab does not reach: ${name(e)}`);
    return [...missed, ...[...met.values()].flat()];
  };
})();
