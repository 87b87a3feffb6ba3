for (const plot of document.querySelectorAll("svg.plot")) {
  // Reads the values under the pointer back out of the drawn lines; the page is whole without it.
  const out = plot.closest("figure").querySelector("output");
  const d = plot.dataset, first = +d.first, last = +d.last, low = +d.low, high = +d.high;
  const value = y => d.log ? Math.exp(Math.log(high) - y / 1000 * Math.log(high / low)) : high - y / 1000 * (high - low);
  const update = x => Math.round(first + x / 2000 * (last - first));
  const pairs = path => [...path.getAttribute("d").matchAll(/(-?\d+) (-?\d+)/g)].map(m => [+m[1], +m[2]]);
  let lines = null, cursor = null;
  plot.addEventListener("pointermove", event => {
    lines = lines || [...plot.querySelectorAll("path.line")].map(path => [path.dataset.name, pairs(path)]);
    const box = plot.getBoundingClientRect();
    const at = 2000 * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    const near = points => points.reduce((a, b) => Math.abs(a[0] - at) > Math.abs(b[0] - at) ? b : a);
    const found = lines.filter(line => line[1].length).map(line => [line[0], near(line[1])]);
    if (!found.length) return;
    const x = found.map(f => f[1]).reduce((a, b) => Math.abs(a[0] - at) > Math.abs(b[0] - at) ? b : a)[0];
    const text = found.map(f => f[0] + " " + +value(f[1][1]).toPrecision(4) + (f[1][0] === x ? "" : " (at " + update(f[1][0]) + ")"));
    out.textContent = "update " + update(x) + ": " + text.join(", ");
    if (!cursor) {
      cursor = plot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("y2", "100%");
    }
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x / 20 + "%");
  });
  plot.addEventListener("pointerleave", () => {
    out.textContent = "";
    if (cursor) cursor.remove();
    cursor = null;
  });
}
