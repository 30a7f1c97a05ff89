'use strict';
/* Drawing: plain SVG, as wide as its place and drawn again when that changes. One tab stop a chart: the pointer or the
   arrow keys move a cursor over its columns. Text goes in as text nodes only, never as markup. */

const SVG_NAMESPACE = document.querySelector('svg').namespaceURI;
const TONES = ['t1', 't4', 't2', 't5', 't6', 't3'];

function put(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}
const element = (tag, attributes = {}, ...children) => put(document.createElement(tag), attributes, children);
const shape = (tag, attributes = {}, ...children) =>
  put(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);

const known = (value) => typeof value === 'number' && Number.isFinite(value);
const whole = (value) => (known(value) ? Math.round(value).toLocaleString('en-US') : '–');
const percent = (value, digits = 1) => (known(value) ? `${(100 * value).toFixed(digits)}\u00a0%` : '–');
function figure(value) {
  if (!known(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-4 ? value.toExponential(1) : `${+value.toPrecision(3)}`;
}
function duration(seconds) {
  if (!known(seconds)) return '–';
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const rounded = Math.round(seconds);
  return rounded < 3600
    ? `${Math.floor(rounded / 60)} min ${rounded % 60} s`
    : `${Math.floor(rounded / 3600)} h ${Math.floor((rounded % 3600) / 60)} min`;
}
/** A figure that may come bare or as {value, low, high}. */
function estimate(held) {
  if (known(held)) return { value: held };
  return held && known(held.value) ? held : null;
}
const interval = (held, format = percent) =>
  held && known(held.low) && known(held.high) ? ` (${format(held.low)} to ${format(held.high)})` : '';

function wilson(share, count) {
  const z = 1.959964,
    square = (z * z) / count,
    middle = (share + square / 2) / (1 + square);
  const half = (z / (1 + square)) * Math.sqrt((share * (1 - share)) / count + square / (4 * count));
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

const pen = document.createElement('canvas').getContext('2d');
function textWidth(text, font = '12px') {
  pen.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

/** A round number that cuts [low, high] in about `wanted` parts; a whole one where `least` is 1. */
function stepOf(low, high, wanted, least = 0) {
  const raw = Math.max((high - low) / Math.max(1, wanted), least, 1e-12);
  const steps = [1, 2, 2.5, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10(raw)));
  return steps.filter((step) => !least || Number.isInteger(step)).find((step) => step >= raw * 0.999);
}
/** The multiples of a step within [low, high]. */
function ticks(low, high, step) {
  const made = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    made.push(+(i * step).toPrecision(12));
  }
  return made;
}
/** The range of an axis: it holds the values, is at least `span` wide and ends on ticks, within floor and ceiling. */
function reach(values, { zero = false, floor = -Infinity, ceiling = Infinity, wanted = 4, span = 0 } = {}) {
  let low = Math.min(...values, ...(zero ? [0] : [])),
    high = Math.max(...values);
  const missing = Math.max(span, 1e-9, 0.05 * Math.abs(high)) - (high - low);
  if (missing > 0) {
    high = Math.min(ceiling, high + (zero ? missing : missing / 2));
    low = zero ? low : Math.max(floor, low - missing / 2);
  }
  if (high === low) high += 1;
  const step = stepOf(low, high, wanted);
  low = Math.max(floor, Math.floor(low / step + 1e-9) * step);
  high = Math.min(ceiling, Math.ceil(high / step - 1e-9) * step);
  return { low, high, step, marks: ticks(low, high, step) };
}
/** How the ticks of an axis are written: with as many digits as tell them apart. */
function tickFormat(format, step) {
  if (format !== percent) return format;
  const digits = Math.max(0, Math.ceil(-Math.log10(100 * step) - 1e-9));
  return (value) => percent(value, Number.isInteger(+(step * 10 ** (digits + 2)).toPrecision(6)) ? digits : digits + 1);
}

const builders = new WeakMap();
const drawnAt = new WeakMap();
function draw(host) {
  const width = Math.floor(host.clientWidth);
  if (width < 40 || drawnAt.get(host) === width) return;
  drawnAt.set(host, width);
  host.replaceChildren(...[builders.get(host)(width)].flat());
}
// Drawing changes sizes: done within the notification, the browser would report a loop.
const watcher = new ResizeObserver((changes) =>
  requestAnimationFrame(() => changes.forEach((change) => draw(change.target))),
);
/** Puts what `build(width)` makes into `host`, now and whenever the width changes. */
function mount(host, build) {
  builders.set(host, build);
  drawnAt.delete(host);
  draw(host);
  watcher.observe(host);
}
const empty = (host, text) => {
  mount(host, () => element('p', { class: 'empty' }, text));
};

/** Axes and scales. `x` and `y`: {low, high, marks, format}; `title` stands under the x axis. */
function plot({ width, height, margin, x, y, title, label }) {
  const right = width - margin.right,
    bottom = height - margin.bottom;
  const sx = (value) => margin.left + ((value - x.low) / (x.high - x.low)) * (right - margin.left);
  const sy = (value) => bottom - ((value - y.low) / (y.high - y.low)) * (bottom - margin.top);
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label, tabindex: 0 });
  for (const mark of y.marks) {
    const at = Math.round(sy(mark)) + 0.5;
    svg.append(
      shape('line', { class: 'gridline', x1: margin.left, x2: right, y1: at, y2: at }),
      shape('text', { x: margin.left - 7, y: at + 4, 'text-anchor': 'end' }, y.format(mark)),
    );
  }
  svg.append(shape('line', { class: 'axis', x1: margin.left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5 }));
  for (const mark of x.marks) {
    svg.append(shape('text', { x: sx(mark), y: bottom + 17, 'text-anchor': 'middle' }, x.format(mark)));
  }
  if (title) svg.append(shape('text', { x: (margin.left + right) / 2, y: height - 3, 'text-anchor': 'middle' }, title));
  return { svg, sx, sy, right, bottom, top: margin.top, left: margin.left };
}
const gutter = (y) => Math.ceil(Math.max(...y.marks.map((mark) => textWidth(y.format(mark))))) + 10;

/** A cursor over `columns` ({x, title, lines}); follows the pointer and the arrow keys. */
function inspect({ svg, top, bottom }, columns) {
  if (!columns.length) return;
  const tip = document.getElementById('tooltip');
  const cursor = shape('line', { class: 'cursor', y1: top, y2: bottom, visibility: 'hidden' });
  svg.append(cursor);
  let at = columns.length - 1;
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute('visibility', 'hidden');
  };
  const show = (index) => {
    at = index;
    const column = columns[at],
      box = svg.getBoundingClientRect(),
      scale = box.width / svg.viewBox.baseVal.width;
    cursor.setAttribute('x1', column.x);
    cursor.setAttribute('x2', column.x);
    cursor.setAttribute('visibility', 'visible');
    tip.replaceChildren(element('b', {}, column.title), ...column.lines.map((line) => element('span', {}, line)));
    tip.hidden = false;
    const middle = box.left + column.x * scale,
      width = tip.offsetWidth,
      room = document.documentElement.clientWidth;
    let left = middle + 12;
    if (left + width > room - 6) left = middle - width - 12;
    tip.style.left = `${Math.min(Math.max(6, left), Math.max(6, room - width - 6))}px`;
    tip.style.top = `${Math.max(6, box.top + top * scale)}px`;
  };
  const pointed = (event) => {
    const box = svg.getBoundingClientRect(),
      x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = 0;
    columns.forEach((column, i) => {
      if (Math.abs(column.x - x) < Math.abs(columns[best].x - x)) best = i;
    });
    show(best);
  };
  svg.addEventListener('pointermove', pointed);
  svg.addEventListener('pointerdown', pointed);
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('focus', () => {
    if (svg.matches(':focus-visible')) show(at);
  });
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: columns.length - 1 }[event.key];
    if (event.key === 'Escape') hide();
    if (to === undefined) return;
    event.preventDefault();
    show(Math.min(columns.length - 1, Math.max(0, to)));
  });
}

/** Lines over x with 95 % bands. series: [{name, tone, points: [{x, value, low, high}]}]. */
function lineChart(host, options) {
  const settings = { title: 'Round', format: figure, height: 300, range: {}, ends: false, named: false, ...options };
  const lines = settings.series
    .map((one) => ({ ...one, points: one.points.filter((p) => known(p.value)) }))
    .filter((one) => one.points.length);
  if (lines.length) mount(host, (width) => drawLines(lines, width, settings));
  else empty(host, 'Not in the log.');
}
const latestOf = (line) => line.points[line.points.length - 1];

function drawLines(lines, width, { label, title, xName = title, format, height, range, ends, named }) {
  const wide = width >= 620,
    xs = [...new Set(lines.flatMap((one) => one.points.map((p) => p.x)))].sort((a, b) => a - b);
  const held = lines.flatMap((one) => one.points.flatMap((p) => [p.value, p.low, p.high])).filter(known);
  const y = reach(held, range);
  y.format = tickFormat(format, y.step);
  const endText = (one) => `${wide ? `${one.name} ` : ''}${format(latestOf(one).value)}`;
  const right = ends ? Math.ceil(Math.max(...lines.map((one) => textWidth(endText(one), '600 13px')))) + 22 : 12;
  const margin = { top: 12, bottom: title ? 40 : 26, left: gutter(y), right };
  const area = plot({ width, height, margin, x: lineAxis(xs, width - margin.left - right), y, title, label });
  lines.forEach((one) => addBand(area, one));
  lines.forEach((one) => addLine(area, one));
  if (ends)
    endLabels(
      area,
      lines.map((one) => ({ tone: one.tone, text: endText(one), y: area.sy(latestOf(one).value) })),
    );
  const said = (one, p) => `${lines.length > 1 ? `${one.name} ` : ''}${format(p.value)}${interval(p, format)}`;
  const at = (x) => lines.flatMap((one) => one.points.filter((p) => p.x === x).map((p) => said(one, p)));
  inspect(
    area,
    xs.map((x) => ({ x: area.sx(x), title: `${xName} ${whole(x)}`, lines: at(x) })),
  );
  return named || (ends && !wide) ? [legend(lines), area.svg] : area.svg;
}
/** The axis of rounds or steps; a single one stands in the middle. */
function lineAxis(xs, room) {
  if (xs.length === 1) return { low: xs[0] - 1, high: xs[0] + 1, marks: xs, format: whole };
  const low = xs[0],
    high = xs[xs.length - 1],
    wanted = Math.max(2, Math.min(12, room / (high < 1000 ? 34 : 64)));
  return { low, high, marks: ticks(low, high, stepOf(low, high, wanted, 1)), format: whole };
}
const placed = ({ sx, sy }, points, what) => points.map((p) => `${sx(p.x).toFixed(1)},${sy(p[what]).toFixed(1)}`);

function addBand(area, { tone, points }) {
  const ranged = points.filter((p) => known(p.low) && known(p.high));
  if (ranged.length > 1) {
    const outline = [...placed(area, ranged, 'high'), ...placed(area, ranged, 'low').reverse()];
    area.svg.append(shape('path', { class: `band ${tone}`, d: `M${outline.join('L')}Z` }));
  } else if (ranged.length) {
    const [p] = ranged,
      x = area.sx(p.x);
    area.svg.append(shape('line', { class: `whisker ${tone}`, x1: x, x2: x, y1: area.sy(p.low), y2: area.sy(p.high) }));
  }
}
function addLine({ svg, ...scales }, { tone, points }) {
  const path = `M${placed(scales, points, 'value').join('L')}`;
  if (points.length > 1) svg.append(shape('path', { class: `line ${tone}`, d: path }));
  if (points.length > 24) return;
  for (const p of points)
    svg.append(shape('circle', { class: `dot ${tone}`, cx: scales.sx(p.x), cy: scales.sy(p.value), r: 3.6 }));
}
const legend = (series) =>
  element(
    'p',
    { class: 'legend' },
    series.map((one) => element('span', {}, element('i', { class: one.tone }), one.name)),
  );

/** Labels at the right end of the lines, pushed apart so that none covers another. */
function endLabels({ svg, right, top, bottom }, labels) {
  const sorted = labels.sort((a, b) => a.y - b.y);
  sorted.forEach((one, i) => {
    if (i) one.y = Math.max(one.y, sorted[i - 1].y + 17);
  });
  for (let i = sorted.length - 1, limit = bottom; i >= 0; i -= 1, limit -= 17) {
    sorted[i].y = Math.max(top, Math.min(sorted[i].y, limit, i + 1 < sorted.length ? sorted[i + 1].y - 17 : limit));
  }
  sorted.forEach((one) =>
    svg.append(shape('text', { class: `end ${one.tone}`, x: right + 12, y: one.y + 4 }, one.text)),
  );
}
