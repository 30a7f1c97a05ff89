'use strict';
/* The figures that are not lines: histograms, the reliability curve, stacked time, and the thumbnails of the rounds. */

const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
const evenly = (count) => Array.from({ length: count + 1 }, (_, i) => i / count);

/** Bars of counts between edges as shares of all, with the first round as a dashed outline. */
function histogram(host, { label, held, ghost, tone, title, format, unit }) {
  if (!held || !total(held.counts)) {
    empty(host, 'Nothing to count in this round.');
    return;
  }
  mount(host, (width) => {
    const shares = ({ counts }) => counts.map((count) => count / total(counts));
    const first = ghost && total(ghost.counts) ? ghost : null;
    const tallest = Math.max(...shares(held), ...(first ? shares(first) : []));
    const y = reach([0, tallest], { wanted: 3 });
    y.format = tickFormat(percent, y.step);
    const margin = { top: 10, bottom: 40, left: gutter(y), right: 14 };
    const edges = [...held.edges, ...(first ? first.edges : [])];
    const x = { low: Math.min(...edges), high: Math.max(...edges), format };
    x.marks = ticks(x.low, x.high, stepOf(x.low, x.high, Math.max(2, width / 75)));
    const area = plot({ width, height: 210, margin, x, y, title, label }),
      { svg, sx, sy } = area;
    shares(held).forEach((share, i) => {
      const left = sx(held.edges[i]) + 0.75,
        right = sx(held.edges[i + 1]) - 0.75;
      svg.append(
        shape('rect', {
          class: `bar ${tone}`,
          x: left,
          y: sy(share),
          width: Math.max(0.5, right - left),
          height: sy(0) - sy(share),
        }),
      );
    });
    if (first) {
      const steps = shares(first).map(
        (share, i) => `L${sx(first.edges[i])},${sy(share)}L${sx(first.edges[i + 1])},${sy(share)}`,
      );
      const start = first.edges[0],
        end = first.edges[first.edges.length - 1];
      svg.append(shape('path', { class: 'ghost', d: `M${sx(start)},${sy(0)}${steps.join('')}L${sx(end)},${sy(0)}` }));
    }
    inspect(
      area,
      held.counts.map((count, i) => ({
        x: (sx(held.edges[i]) + sx(held.edges[i + 1])) / 2,
        title: `${format(held.edges[i])} to ${format(held.edges[i + 1])}`,
        lines: [`${whole(count)} ${unit} (${percent(count / total(held.counts))})`],
      })),
    );
    return svg;
  });
}

/** Accuracy against vote share, bin by bin. */
function reliability(host, { label, bins, ghost }) {
  const filled = (held) => (held ?? []).filter((bin) => bin.count > 0 && known(bin.mean_share) && known(bin.accuracy));
  const own = filled(bins),
    first = filled(ghost);
  if (!own.length) {
    empty(host, 'No evaluation of this round.');
    return;
  }
  mount(host, (width) => {
    const axis = { low: 0, high: 1, marks: [0, 0.25, 0.5, 0.75, 1], format: (value) => percent(value, 0) };
    const margin = { top: 10, bottom: 40, left: gutter(axis), right: 14 };
    const area = plot({ width, height: 210, margin, x: axis, y: axis, title: 'Vote share', label }),
      { svg, sx, sy } = area;
    const most = Math.max(...own.map((bin) => bin.count));
    const path = (held) => `M${held.map((bin) => `${sx(bin.mean_share)},${sy(bin.accuracy)}`).join('L')}`;
    svg.append(shape('line', { class: 'diagonal', x1: sx(0), y1: sy(0), x2: sx(1), y2: sy(1) }));
    if (first.length > 1) svg.append(shape('path', { class: 'ghost', d: path(first) }));
    svg.append(shape('path', { class: 'line t1', d: path(own) }));
    for (const bin of own) {
      const { low, high } = wilson(bin.accuracy, bin.count),
        at = sx(bin.mean_share);
      svg.append(
        shape('line', { class: 'whisker t1', x1: at, x2: at, y1: sy(low), y2: sy(high) }),
        shape('circle', { class: 'dot t1', cx: at, cy: sy(bin.accuracy), r: 3 + 4 * Math.sqrt(bin.count / most) }),
      );
    }
    inspect(
      area,
      own.map((bin) => ({
        x: sx(bin.mean_share),
        title: `Vote share ${percent(bin.low, 0)} to ${percent(bin.high, 0)}`,
        lines: [
          `${whole(bin.count)} questions, mean share ${percent(bin.mean_share)}`,
          `accuracy ${percent(bin.accuracy)}${interval(wilson(bin.accuracy, bin.count))}`,
        ],
      })),
    );
    return svg;
  });
}

/** Columns of stacked seconds. columns: [{round, parts: {phase: seconds}}]. */
function timeChart(host, { label, columns, order }) {
  const phases = order.filter((phase) => columns.some((column) => phase in column.parts));
  const sum = (column) => total(Object.values(column.parts));
  if (!phases.length || !columns.some(sum)) {
    empty(host, 'No times have been written yet.');
    return;
  }
  mount(host, (width) => {
    const tallest = Math.max(...columns.map(sum)),
      [size, unit] = tallest > 5400 ? [3600, 'h'] : tallest > 300 ? [60, 'min'] : [1, 's'];
    const made = reach([0, tallest / size]);
    const y = {
      low: 0,
      high: made.high * size,
      marks: made.marks.map((mark) => mark * size),
      format: (value) => `${figure(value / size)} ${unit}`,
    };
    const margin = { top: 22, bottom: 40, left: gutter(y), right: 8 };
    const x = { low: columns[0].round - 0.6, high: columns[columns.length - 1].round + 0.6, format: whole };
    x.marks = ticks(x.low, x.high, stepOf(x.low, x.high, Math.max(2, width / 40), 1));
    const area = plot({ width, height: 260, margin, x, y, title: 'Round', label }),
      { svg, sx, sy } = area;
    const thick = Math.min(56, (sx(1) - sx(0)) * 0.7);
    for (const column of columns) {
      let floor = 0;
      phases.forEach((phase, i) => {
        const seconds = column.parts[phase] ?? 0,
          height = sy(floor) - sy(floor + seconds);
        floor += seconds;
        if (height > 0)
          svg.append(
            shape('rect', {
              class: `bar ${TONES[i % TONES.length]}`,
              x: sx(column.round) - thick / 2,
              y: sy(floor),
              width: thick,
              height,
            }),
          );
      });
      const text = duration(floor);
      if (textWidth(text) < sx(1) - sx(0))
        svg.append(shape('text', { x: sx(column.round), y: sy(floor) - 6, 'text-anchor': 'middle' }, text));
    }
    inspect(
      area,
      columns.map((column) => ({
        x: sx(column.round),
        title: `Round ${column.round}: ${duration(sum(column))}`,
        lines: phases
          .filter((phase) => phase in column.parts)
          .map((phase) => `${phase} ${duration(column.parts[phase])}`),
      })),
    );
    return [legend(phases.map((phase, i) => ({ name: phase, tone: TONES[i % TONES.length] }))), svg];
  });
}

/** A row of radio buttons, each with the small histogram of its round. */
function thumbnails(place, rounds, chosen, choose) {
  const buttons = rounds.map(({ round, counts }) => {
    const svg = shape('svg', { viewBox: '0 0 78 34', 'aria-hidden': 'true' });
    const most = Math.max(1, ...(counts ?? [0]));
    (counts ?? []).forEach((count, i) => {
      const width = 78 / counts.length,
        height = (32 * count) / most;
      svg.append(shape('rect', { class: 'bar', x: i * width + 0.4, y: 33 - height, width: width - 0.8, height }));
    });
    svg.append(shape('line', { class: 'axis', x1: 0, x2: 78, y1: 33.5, y2: 33.5 }));
    const input = element('input', { type: 'radio', name: 'round', value: round, checked: round === chosen });
    input.addEventListener('change', () => choose(round));
    return element('label', {}, input, svg, `Round ${round}`);
  });
  place.replaceChildren(place.querySelector('legend'), ...buttons);
  place.scrollLeft = place.scrollWidth; // the latest is chosen
}
