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

/** Round numbers about `wanted` apart that lie within [low, high]. */
function ticks(low, high, wanted, least = 0) {
  const raw = Math.max((high - low) / Math.max(1, wanted), least, 1e-12),
    power = 10 ** Math.floor(Math.log10(raw));
  const steps = [1, 2, 2.5, 5, 10].map((m) => m * power).filter((step) => !least || Number.isInteger(step));
  const step = steps.find((one) => one >= raw * 0.999);
  const made = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    made.push(+(i * step).toPrecision(12));
  return made;
}
/** The range of an axis, widened to its ticks. */
function reach(values, { zero = false, floor = -Infinity, ceiling = Infinity, wanted = 4 } = {}) {
  let low = Math.min(...values),
    high = Math.max(...values);
  if (zero) low = Math.min(0, low);
  if (high - low < 1e-9) {
    const pad = Math.abs(high) * 0.1 || 0.05;
    low -= zero ? 0 : pad;
    high += pad;
  }
  const marks = ticks(low, high, wanted),
    step = marks.length > 1 ? marks[1] - marks[0] : high - low;
  low = Math.max(floor, Math.floor(low / step + 1e-9) * step);
  high = Math.min(ceiling, Math.ceil(high / step - 1e-9) * step);
  return { low, high, marks: ticks(low, high, (high - low) / step) };
}

const builders = new WeakMap();
const drawnAt = new WeakMap();
function draw(host) {
  const width = Math.floor(host.clientWidth);
  if (width < 40 || drawnAt.get(host) === width) return;
  drawnAt.set(host, width);
  host.replaceChildren(...[builders.get(host)(width)].flat());
}
const watcher = new ResizeObserver((changes) => changes.forEach((change) => draw(change.target)));
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
function lineChart(
  host,
  {
    label,
    series,
    title = 'Round',
    xName = title,
    format = figure,
    height = 300,
    range = {},
    ends = false,
    named = false,
    integers = true,
  },
) {
  const present = series
    .map((one) => ({ ...one, points: one.points.filter((p) => known(p.value)) }))
    .filter((one) => one.points.length);
  if (!present.length) {
    empty(host, 'Not in the log.');
    return;
  }
  mount(host, (width) => {
    const wide = width >= 620,
      points = present.flatMap((one) => one.points);
    const xs = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
    const y = {
      ...reach(
        points.flatMap((p) => [p.value, p.low, p.high].filter(known)),
        range,
      ),
      format: range.tick ?? format,
    };
    const last = (one) => one.points[one.points.length - 1];
    const endText = (one) => (wide ? `${one.name} ${format(last(one).value)}` : format(last(one).value));
    const margin = { top: 12, bottom: title ? 40 : 26, left: gutter(y), right: 12 };
    if (ends) margin.right = Math.ceil(Math.max(...present.map((one) => textWidth(endText(one), '600 13px')))) + 22;
    const single = xs.length === 1,
      low = single ? xs[0] - 1 : xs[0],
      high = single ? xs[0] + 1 : xs[xs.length - 1];
    const wanted = Math.max(
      2,
      Math.min(12, (width - margin.left - margin.right) / (xs[xs.length - 1] < 1000 ? 34 : 64)),
    );
    const x = {
      low,
      high,
      marks: single ? xs : ticks(low, high, wanted, integers ? 1 : 0),
      format: integers ? whole : figure,
    };
    const area = plot({ width, height, margin, x, y, title, label });
    const { svg, sx, sy } = area,
      at = (p, what) => `${sx(p.x).toFixed(1)},${sy(p[what]).toFixed(1)}`;
    for (const { tone, points: own } of present) {
      const ranged = own.filter((p) => known(p.low) && known(p.high));
      if (ranged.length > 1) {
        const outline = [
          ...ranged.map((p) => at(p, 'high')),
          ...ranged
            .slice()
            .reverse()
            .map((p) => at(p, 'low')),
        ];
        svg.append(shape('path', { class: `band ${tone}`, d: `M${outline.join('L')}Z` }));
      } else if (ranged.length) {
        const [p] = ranged;
        svg.append(
          shape('line', { class: `whisker ${tone}`, x1: sx(p.x), x2: sx(p.x), y1: sy(p.low), y2: sy(p.high) }),
        );
      }
    }
    for (const { tone, points: own } of present) {
      if (own.length > 1)
        svg.append(shape('path', { class: `line ${tone}`, d: `M${own.map((p) => at(p, 'value')).join('L')}` }));
      if (own.length <= 24)
        own.forEach((p) => svg.append(shape('circle', { class: `dot ${tone}`, cx: sx(p.x), cy: sy(p.value), r: 3.6 })));
    }
    if (ends)
      endLabels(
        area,
        present.map((one) => ({ tone: one.tone, text: endText(one), y: sy(last(one).value) })),
      );
    inspect(
      area,
      xs.map((value) => ({
        x: sx(value),
        title: `${xName} ${whole(value)}`,
        lines: present.flatMap((one) =>
          one.points
            .filter((p) => p.x === value)
            .map((p) => `${present.length > 1 ? `${one.name} ` : ''}${format(p.value)}${interval(p, format)}`),
        ),
      })),
    );
    return named || (ends && !wide) ? [legend(present), svg] : svg;
  });
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
