(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const setting = document.getElementById("setting");
  const kind = document.getElementById("kind");
  const confused = document.getElementById("confused");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Where the filters stay in sight they are the legend; elsewhere each picture needs its own.
  const legendInSight = window.matchMedia("(min-width: 40.01rem) and (min-height: 40.01rem)");
  const manyClasses = 30;
  const mostRows = 400;

  // What is chosen

  const chosen = () => ({
    dataset: form.elements.dataset.value,
    backbone: form.elements.backbone.value,
    size: form.elements.size.value,
    methods: new Set([...form.querySelectorAll("[name=method]:checked")].map((box) => box.value)),
  });

  const groupFits = (filter, label) => {
    const group = data.groups[label];
    return group && ["dataset", "backbone", "size"].every((name) => !filter[name] || filter[name] === group[name]);
  };

  // Tables

  const filterTables = (filter) => {
    const rows = [...document.querySelectorAll("#results tbody tr")];
    for (const row of rows) {
      row.hidden = !(groupFits(filter, row.dataset.group) && filter.methods.has(row.dataset.method));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${rows.length} rows shown.`;
    for (const table of document.querySelectorAll("table.overview")) filterOverview(table, filter);
  };

  const filterOverview = (table, filter) => {
    const heads = [...table.tHead.rows[0].cells];
    const fits = heads.map((head) => !head.dataset.group || groupFits(filter, head.dataset.group));
    for (const row of table.rows) [...row.cells].forEach((cell, place) => { cell.hidden = !fits[place]; });
    for (const row of table.tBodies[0].rows) row.hidden = !filter.methods.has(row.dataset.method);
  };

  const sortKey = (cell) => (cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value));

  const compare = (first, second) =>
    typeof first === "number" && typeof second === "number"
      ? first - second
      : String(first).localeCompare(String(second), undefined, { numeric: true });

  const sortBy = (head) => {
    const place = head.cellIndex;
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const body = head.closest("table").tBodies[0];
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort(
      (a, b) => sign * compare(sortKey(a.cells[place]), sortKey(b.cells[place])),
    );
    body.append(...rows);
  };

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }

  // Selects that depend on the filters

  const fill = (select, names) => {
    if (!select) return;
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(data.groups[name]?.name ?? name, name)));
    if (names.includes(before)) select.value = before;
  };

  const fillSelects = (filter) => {
    fill(setting, Object.keys(data.groups).filter((label) => groupFits(filter, label)));
    const matrices = (data.charts.confusion?.values ?? []).filter((value) => value.group === setting.value);
    fill(confused, matrices.map((value) => value.method).filter((name) => filter.methods.has(name)));
  };

  // Pictures

  const theme = () => {
    const [text, line] = dark.matches ? ["#e6edf3", "#3d444d"] : ["#1f2328", "#d1d9e0"];
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: line },
      axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line },
      legend: { labelColor: text, titleColor: text },
    };
  };

  const shownValues = (name, chart, filter) => {
    if (name === "confusion") return confusionValues(chart);
    const wanted = chart.one === "series" ? data.groups[setting.value]?.series : setting.value;
    return chart.values.filter(
      (value) =>
        filter.methods.has(value.method) &&
        (chart.one ? value[chart.one] === wanted : groupFits(filter, value.group)) &&
        (!value.kind || value.kind === kind.value),
    );
  };

  const confusionValues = (chart) => {
    const found = chart.values.find((value) => value.group === setting.value && value.method === confused.value);
    if (!found) return [];
    return found.rows.flatMap((row, label) => {
      const pairs = row.split(" ").filter(Boolean).map((pair) => pair.split(":").map(Number));
      const total = pairs.reduce((sum, [, count]) => sum + count, 0);
      const counts = new Map(pairs);
      return found.classes.map((predicted, other) => {
        const count = counts.get(other) ?? 0;
        return { true: found.classes[label], predicted, count, share: total ? (100 * count) / total : 0 };
      });
    });
  };

  const fitScale = (channel, values) => {
    if (channel.field === "cost") {
      channel.title = kind.value;
      channel.axis.format = ["peak memory", "delta size"].includes(kind.value) ? "~s" : "~g";
    }
    if (channel.field === "layer") channel.sort = [...new Set(values.map((value) => value.layer))];
  };

  const fitEncoding = (encoding, values) => {
    if (!encoding) return;
    for (const axis of ["x", "y"]) if (encoding[axis]?.field) fitScale(encoding[axis], values);
    const present = new Set(values.map((value) => value.method));
    const names = Object.keys(data.styles).filter((name) => present.has(name));
    for (const [channel, look] of [["color", "colour"], ["shape", "shape"]]) {
      if (encoding[channel]?.field !== "method") continue;
      encoding[channel].scale = { domain: names, range: names.map((name) => data.styles[name][look]) };
      if (legendInSight.matches) encoding[channel].legend = null;
    }
  };

  const specFor = (chart, values, width) => {
    const spec = structuredClone(chart.spec);
    spec.data.values = values;
    fitEncoding(spec.encoding, values);
    for (const layer of spec.layer ?? []) fitEncoding(layer.encoding, values);
    const longest = Math.max(0, ...values.map((value) => (value.method ?? "").length));
    const columns = Math.max(1, Math.floor(width / (32 + 7 * longest))); // the page is as wide as its window
    spec.config = { ...spec.config, legend: { ...spec.config.legend, columns } };
    spec.width = "container";
    spec.autosize = { type: "fit-x", contains: "padding" };
    return spec;
  };

  const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(3))) : String(value));

  // What is to be seen, for whoever cannot see it.
  const describe = (chart, values) => {
    if (!values.length) return `${chart.title}: nothing is shown.`;
    const parts = [...groupBy(values)].map(([name, points]) => {
      const numbers = points.map((point) => point[chart.y]);
      const label = name ? `${name}: ` : "";
      return `${label}${chart.y} ${short(Math.min(...numbers))} to ${short(Math.max(...numbers))}`;
    });
    return `${chart.title}, ${values.length} points. ${parts.join("; ")}.`;
  };

  const groupBy = (values) => {
    const groups = new Map();
    for (const value of values) groups.set(value.method ?? "", [...(groups.get(value.method ?? "") ?? []), value]);
    return groups;
  };

  const tabulate = (details, values) => {
    const names = Object.keys(values[0] ?? {});
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of names) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const value of values.slice(0, mostRows)) {
      const row = body.insertRow();
      for (const name of names) row.insertCell().textContent = short(value[name]);
    }
    const frame = document.createElement("div");
    frame.className = "scroll long";
    frame.tabIndex = 0;
    frame.append(table);
    details.replaceChildren(details.firstElementChild, frame);
  };

  const drawn = {};

  const draw = async (name, filter) => {
    const chart = data.charts[name];
    const place = document.getElementById(`chart-${name}`);
    const details = document.getElementById(`data-${name}`);
    const values = shownValues(name, chart, filter);
    details.ontoggle = () => { if (details.open) tabulate(details, values); };
    if (details.open) tabulate(details, values);
    drawn[name]?.finalize();
    drawn[name] = undefined;
    place.replaceChildren();
    place.setAttribute("aria-label", describe(chart, values));
    if (!values.length) {
      const none = document.createElement("p");
      none.className = "none";
      none.textContent = "Nothing to draw for what is chosen.";
      place.append(none);
      return;
    }
    const renderer = values.length > manyClasses ** 2 ? "canvas" : "svg";
    const spec = specFor(chart, values, place.clientWidth);
    spec.description = describe(chart, values); // Vega makes it the label of the place
    drawn[name] = await window.vegaEmbed(place, spec, { actions: false, renderer, config: theme() });
  };

  let turn = Promise.resolve();
  const update = () => {
    const filter = chosen();
    filterTables(filter);
    if (setting) fillSelects(filter);
    // One after the other: two drawings into one place would both stay.
    turn = turn.then(async () => {
      for (const name of Object.keys(data.charts)) await draw(name, filter);
      document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
    });
  };

  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  for (const select of [setting, kind, confused]) select?.addEventListener("change", update);
  for (const media of [dark, legendInSight]) media.addEventListener("change", update);
  update();
})();
