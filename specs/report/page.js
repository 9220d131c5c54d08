"use strict";
// Draws every figure from the JSON beside it.
for (const source of document.querySelectorAll("script[data-figure]")) {
  const { data, layout } = JSON.parse(source.textContent);
  const place = document.getElementById(source.dataset.figure);
  Plotly.newPlot(place, data, layout, { responsive: true, displayModeBar: false, doubleClick: false });
}
// Paper is not as wide as the screen, and browsers do not resize for it by themselves.
for (const moment of ["beforeprint", "afterprint"]) {
  addEventListener(moment, () => document.querySelectorAll(".figure").forEach((place) => Plotly.Plots.resize(place)));
}
