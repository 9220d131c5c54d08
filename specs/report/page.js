"use strict";
// Draws every figure from the JSON beside it, and saves what is drawn.
const figures = {};
for (const source of document.querySelectorAll("script[data-figure]")) {
  const figure = (figures[source.dataset.figure] = JSON.parse(source.textContent));
  const place = document.getElementById(source.dataset.figure);
  const options = { responsive: true, displayModeBar: false, doubleClick: false };
  Plotly.newPlot(place, figure.data, figure.layout, options);
}
// Paper is not as wide as the screen, and browsers do not resize for it by themselves.
for (const moment of ["beforeprint", "afterprint"]) {
  addEventListener(moment, () => document.querySelectorAll(".figure").forEach((place) => Plotly.Plots.resize(place)));
}

// Text as it is read, without plotly's markup.
function plain(text) {
  const bare = String(text ?? "").replace(/<br>/g, " ").replace(/<[^>]*>/g, "");
  return bare.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&").replace(/\s+/g, " ").trim();
}

// A row for each point of each trace: its trace, its values by the titles of their axes, and the text beside it.
function rowsOf({ data, layout }) {
  const title = (id) => {
    const axis = layout[`${id[0]}axis${id.slice(1)}`];
    return plain(axis?.title?.text) + (axis?.ticksuffix ? "," + axis.ticksuffix : "");
  };
  const rows = [];
  for (const trace of data.filter((one) => one.mode !== "text")) {
    const name = plain(trace.name);
    const [x, y] = [title(trace.xaxis ?? "x"), title(trace.yaxis ?? "y")];
    if (trace.z) {
      const z = plain(trace.colorbar?.title?.text);
      trace.y.forEach((down, i) =>
        trace.x.forEach((across, j) => rows.push({ trace: name, [x]: across, [y]: down, [z]: trace.z[i][j] })));
      continue;
    }
    trace.x.forEach((across, i) => {
      if (trace.y[i] === null) return;
      const end = trace.fill !== "toself" ? "" : 2 * i < trace.x.length ? ", low" : ", high";
      rows.push({ trace: name + end, [x]: across, [y]: trace.y[i], text: plain(trace.text?.[i]) });
    });
  }
  return rows;
}

function csvOf(rows) {
  const heads = [...new Set(rows.flatMap(Object.keys))].filter((head) => rows.some((row) => (row[head] ?? "") !== ""));
  const cell = (value) => (/[",\n]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : String(value ?? ""));
  return [heads, ...rows.map((row) => heads.map((head) => row[head] ?? ""))]
    .map((cells) => cells.map(cell).join(",") + "\n").join("");
}

async function save(name, format) {
  const link = document.createElement("a");
  link.download = `${document.title} ${name}`.replace(/[^\w.-]+/g, "-") + `.${format}`;
  if (format === "svg") {
    link.href = await Plotly.toImage(document.getElementById(name), { format: "svg" });
  } else {
    link.href = URL.createObjectURL(new Blob([csvOf(rowsOf(figures[name]))], { type: "text/csv" }));
  }
  link.click();
  if (format === "csv") URL.revokeObjectURL(link.href);
}
addEventListener("click", ({ target }) => {
  if (target.dataset?.save) save(target.dataset.of, target.dataset.save);
});
