'use strict';
/* What stands where: reads the data of the run and fills the sections. */

const problem = document.getElementById('script-error');
function fault(message) {
  problem.hidden = false;
  problem.textContent = `Part of this page could not be drawn: ${message}.`;
}
window.addEventListener('error', (event) => fault(event.message));
/** Draws one section; where it fails, the others are still drawn. */
function section(show, ...given) {
  try {
    show(...given);
  } catch (error) {
    fault(error.message);
    console.error(error);
  }
}

const run = JSON.parse(document.getElementById('run-data').textContent);
const place = (id) => document.getElementById(id);
const suiteName = (suite) => suite.replaceAll('_', '-');

function evaluations(suite) {
  return run.evaluations[suite] ?? [];
}
const atRound = (records, round) => records.find((record) => record.round === round);
const series = (records, read) => records.map((record) => ({ x: record.round, ...estimate(read(record)) }));

function showAccuracy(suite) {
  const held = evaluations(suite),
    latest = held[held.length - 1];
  if (!latest) {
    empty(place('accuracy-chart'), 'No evaluation has been written yet.');
    return;
  }
  const paths = latest.samples_per_question;
  place('accuracy-note').textContent =
    `${whole(latest.questions)} ${suiteName(suite)} questions, ${whole(paths)} sampled paths each. ` +
    'Bands are 95 % intervals. ' +
    'Greedy: one path, the likeliest token each time. Majority: the answer most paths agree on. ' +
    `pass@${paths}: at least one of the ${paths} paths is right, an upper reference and not a method.`;
  lineChart(place('accuracy-chart'), {
    label: 'Accuracy per round with 95 % intervals',
    height: 360,
    format: percent,
    ends: true,
    range: { floor: 0, ceiling: 1, wanted: 6 },
    series: [
      { name: `pass@${paths}`, tone: 't3', points: series(held, (e) => e.pass_at_n) },
      { name: `Majority of ${paths}`, tone: 't2', points: series(held, (e) => e.majority_accuracy) },
      { name: 'Greedy', tone: 't1', points: series(held, (e) => e.greedy_accuracy) },
    ],
  });
}

/** What a vote of k paths is worth, before the first round and after the last. */
function showPaths(suite) {
  const held = evaluations(suite).filter((e) => Object.keys(e.maj_at_k ?? {}).length > 1);
  place('paths-card').hidden = !held.length;
  if (!held.length) return;
  const first = held[0],
    last = held[held.length - 1];
  const by = (record, name) =>
    Object.entries(record[name]).map(([k, value]) => ({ x: Number(k), ...estimate(value) }));
  const after = (record, what) => `${what}, round ${record.round}`;
  const lines = [
    { name: after(last, 'pass@k'), tone: 't3', points: by(last, 'pass_at_k') },
    { name: after(last, 'maj@k'), tone: 't2', points: by(last, 'maj_at_k') },
  ];
  if (first !== last) lines.push({ name: after(first, 'maj@k'), tone: 't1', points: by(first, 'maj_at_k') });
  lineChart(place('paths-chart'), {
    label: 'Accuracy by number of paths with 95 % intervals',
    title: 'Paths (k)',
    xName: 'k =',
    height: 300,
    format: percent,
    ends: true,
    range: { floor: 0, ceiling: 1, wanted: 6 },
    series: lines,
  });
}

function card(title, sub) {
  const host = element('div', { class: 'figure' });
  return {
    host,
    card: element(
      'div',
      { class: 'card' },
      element('h3', {}, title),
      sub ? element('p', { class: 'sub' }, sub) : null,
      host,
    ),
  };
}
const shareHistogram = (record) =>
  record?.share_histogram ? { counts: record.share_histogram, edges: evenly(record.share_histogram.length) } : null;
function lengthHistogram(record) {
  const held = record?.length_histogram;
  if (!held?.counts?.length) return null;
  const edges = held.edges.slice(0, held.counts.length + 1);
  if (edges.length === held.counts.length) edges.push(2 * edges[edges.length - 1] - (edges[edges.length - 2] ?? 0));
  return { counts: held.counts, edges };
}
/** The same distribution in the first record that has it, unless that is the one shown. */
function outline(records, record, read) {
  const first = records.find(read);
  return first && first !== record ? read(first) : null;
}

function roundFacts(round, training, held) {
  const of = (record, name, format) => [format(estimate(record?.[name])?.value)];
  const facts = [
    ['Questions asked', ...of(training, 'questions', whole)],
    ['Paths sampled', ...of(training, 'samples', whole)],
    ['Questions without an answer', ...of(training, 'questions_without_answer', whole)],
    ['Ties', ...of(training, 'ties', whole)],
    ['Questions kept', ...of(training, 'kept_questions', whole)],
    ['Paths kept', ...of(training, 'kept_paths', whole)],
    ['Questions skipped', ...of(training, 'skipped_questions', whole)],
    ['Held-out: calibration error', ...of(held, 'calibration_error', percent)],
    ['Held-out: Brier score', ...of(held, 'brier', figure)],
    ['Held-out: accuracy of a path', ...of(held, 'sample_accuracy', percent)],
    ['Held-out: precision of kept paths', ...of(held, 'kept_precision', percent)],
  ].filter(([, value]) => value !== '–');
  const list = element(
    'dl',
    { class: 'facts right' },
    facts.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]),
  );
  return element(
    'div',
    { class: 'card' },
    element('h3', {}, `Round ${round} in numbers`),
    training ? null : element('p', { class: 'sub' }, 'Nothing was trained on in this round.'),
    list,
  );
}

function showRound(suite, round) {
  const held = atRound(evaluations(suite), round),
    training = atRound(run.rounds, round);
  const share = (value) => percent(value, 0);
  const cells = {
    heldShare: card(
      'Vote share, held-out',
      held ? `${whole(held.questions)} questions` : 'No evaluation of this round',
    ),
    curve: card('Reliability, held-out', 'Accuracy of the majority at each vote share'),
    heldLength: card('Completion length, held-out', 'Tokens of the sampled paths'),
    share: card(
      'Vote share, training questions',
      training ? `${whole(training.questions)} unlabelled questions` : 'No training in this round',
    ),
    length: card(
      'Completion length, training questions',
      training ? `Tokens of the sampled paths, mean ${figure(training.mean_length)}` : 'No training in this round',
    ),
  };
  place('round-figures').replaceChildren(
    ...Object.values(cells).map((cell) => cell.card),
    roundFacts(round, training, held),
  );
  const bars = (cell, records, record, read, rest) =>
    histogram(cell.host, { held: read(record), ghost: outline(records, record, read), ...rest });
  const votes = { title: 'Vote share', format: share, unit: 'questions' },
    lengths = { title: 'Tokens', format: whole, unit: 'paths' };
  bars(cells.heldShare, evaluations(suite), held, shareHistogram, {
    ...votes,
    tone: 't1',
    label: `Held-out vote shares in round ${round}`,
  });
  reliability(cells.curve.host, {
    bins: held?.reliability,
    ghost: outline(evaluations(suite), held, (e) => e?.reliability),
    label: `Reliability in round ${round}`,
  });
  bars(cells.heldLength, evaluations(suite), held, lengthHistogram, {
    ...lengths,
    tone: 't1',
    label: `Held-out lengths in round ${round}`,
  });
  bars(cells.share, run.rounds, training, shareHistogram, {
    ...votes,
    tone: 't4',
    label: `Training vote shares in round ${round}`,
  });
  bars(cells.length, run.rounds, training, lengthHistogram, {
    ...lengths,
    tone: 't4',
    label: `Training lengths in round ${round}`,
  });
}

function showVotes(suite) {
  const rounds = [...new Set([...evaluations(suite), ...run.rounds].map((record) => record.round))].sort(
    (a, b) => a - b,
  );
  if (!rounds.length) {
    place('round-figures').replaceChildren(element('p', { class: 'empty' }, 'No round has been written yet.'));
    return;
  }
  const shown = evaluations(suite).length ? evaluations(suite) : run.rounds;
  const counted = rounds.map((round) => ({ round, counts: atRound(shown, round)?.share_histogram }));
  const latest = shown[shown.length - 1].round;
  thumbnails(place('round-choice'), counted, latest, (round) => showRound(suite, round));
  showRound(suite, latest);
}

function showCourse(suite) {
  const held = evaluations(suite),
    fraction = { floor: 0, ceiling: 1, wanted: 3, span: 0.02 },
    whole3 = { wanted: 3, zero: true, floor: 0 };
  const training = (read) => ({ name: 'training', tone: 't4', points: series(run.rounds, read) });
  const heldOut = (read) => ({ name: 'held-out', tone: 't1', points: series(held, read) });
  const greedy = (read) => ({ name: 'greedy', tone: 't1', points: series(held, read) });
  const cut = (record) => (known(record.ended) ? 1 - record.ended : null);
  const figures = [
    ['Calibration error', percent, { ...fraction, zero: true }, [heldOut((e) => e.calibration_error)]],
    ['Mean vote share', percent, fraction, [heldOut((e) => e.mean_vote_share), training((r) => r.mean_vote_share)]],
    ['Paths with an answer', percent, fraction, [greedy((e) => e.answered), training((r) => r.answered)]],
    ['Paths cut off', percent, { ...fraction, zero: true }, [greedy((e) => e.truncated), training(cut)]],
    ['Precision of kept paths', percent, fraction, [heldOut((e) => e.kept_precision)]],
    ['Questions kept', percent, { ...fraction, zero: true }, [training((r) => r.kept_questions / r.questions)]],
    ['Paths kept', (value) => (value < 1e5 ? whole(value) : figure(value)), whole3, [training((r) => r.kept_paths)]],
    [
      'Completion length, tokens',
      figure,
      { wanted: 3 },
      [greedy((e) => e.mean_length), training((r) => r.mean_length)],
    ],
  ];
  const cards = figures.map(([title, format, range, lines]) => {
    const made = card(title),
      points = lines[0].points.filter((p) => known(p.value)),
      latest = points[points.length - 1];
    const text = latest
      ? element(
          'p',
          { class: 'latest' },
          format(latest.value),
          points.length > 1 ? element('small', {}, ` from ${format(points[0].value)} in round ${points[0].x}`) : null,
        )
      : null;
    if (text) made.host.before(text);
    return {
      made,
      draw: () =>
        lineChart(made.host, {
          label: `${title} per round`,
          series: lines,
          format,
          height: 140,
          title: null,
          xName: 'Round',
          range,
        }),
    };
  });
  place('course-figures').replaceChildren(...cards.map(({ made }) => made.card));
  cards.forEach((one) => one.draw());
}

function showTime() {
  const columns = new Map();
  const column = (round) => columns.get(round) ?? columns.set(round, { round, parts: {} }).get(round);
  const names = { round: 'sample and train', store: 'store samples', checkpoint: 'checkpoint' };
  const order = new Set(Object.values(names));
  for (const record of run.rounds) {
    for (const [phase, seconds] of Object.entries(record.seconds ?? {}).filter(([, held]) => known(held))) {
      const name = names[phase] ?? phase;
      order.add(name);
      column(record.round).parts[name] = seconds;
    }
  }
  for (const { round, seconds } of run.compiles) {
    order.add('compile');
    if (known(seconds)) column(round).parts.compile = (column(round).parts.compile ?? 0) + seconds;
  }
  order.add('evaluate');
  for (const record of Object.values(run.evaluations).flat()) {
    const parts = column(record.round).parts;
    if (known(record.seconds)) parts.evaluate = (parts.evaluate ?? 0) + record.seconds;
  }
  const sorted = [...columns.values()].sort((a, b) => a.round - b.round);
  timeChart(place('time-chart'), { label: 'Seconds per phase in each round', columns: sorted, order: [...order] });
}

function showLog() {
  const points = (name) => run.pretrain.map((record) => ({ x: record.step, value: record[name] }));
  const rounds = (name) => run.rounds.map((record) => ({ x: record.round, value: record[name] }));
  const figures = [
    ['Pre-training loss', 'Step', [['loss', points('loss')]]],
    ['Pre-training learning rate', 'Step', [['rate', points('learning_rate')]]],
    ['Training loss', 'Round', [['loss', rounds('loss')]]],
    ['Gradient norm', 'Round', [['norm', rounds('gradient_norm')]]],
    ['Tokens sampled', 'Round', [['sampled', rounds('sampled_tokens')]]],
    [
      'Tokens trained on',
      'Round',
      [
        ['all', rounds('training_tokens')],
        ['replay', rounds('replay_tokens')],
      ],
    ],
  ].filter(([, , lines]) => lines.some(([, held]) => held.some((p) => known(p.value))));
  const cards = figures.map(([title]) => card(title));
  place('log-figures').replaceChildren(...cards.map((made) => made.card));
  if (!figures.length) place('log-figures').append(element('p', { class: 'empty' }, 'No training has been logged.'));
  figures.forEach(([title, axis, lines], i) => {
    const tones = axis === 'Step' ? ['t5'] : ['t4', 't3'];
    const present = lines.filter(([, held]) => held.some((p) => known(p.value)));
    const drawn = present.map(([name, held], at) => ({ name, tone: tones[at], points: held }));
    lineChart(cards[i].host, {
      label: title,
      height: 210,
      title: axis,
      series: drawn,
      named: drawn.length > 1,
      range: { wanted: 4, zero: !title.endsWith('loss') },
    });
  });
}

function showSuite(suite) {
  for (const show of [showAccuracy, showPaths, showVotes, showCourse]) section(show, suite);
}
if (run.suites.length > 1) {
  const choice = element(
    'select',
    { 'aria-label': 'Evaluation suite' },
    run.suites.map((suite) => element('option', { value: suite }, suiteName(suite))),
  );
  choice.addEventListener('change', () => showSuite(choice.value));
  place('suite-place').append(choice);
}
/** Takes out the sections that have nothing to show, and their links; the head of the page says what there is. */
function leaveOut(...names) {
  for (const name of names) {
    place(name).remove();
    document.querySelector(`nav a[href="#${name}"]`).remove();
  }
}

section(showTiles, place('tiles'), run);
section(showTables, place('round-tables'), run);
showSuite(run.suites[0] ?? 'held_out');
section(showBrowser, place('browser'), run.files);
section(showTime);
section(showLog);
section(showEnvironment, place('environment-facts'), run);
if (!run.suites.length && !run.rounds.length) leaveOut('accuracy', 'rounds', 'votes', 'course', 'time');
if (!run.suites.length && !run.rounds.length && !run.files.length) leaveOut('questions');
if (!run.pretrain.length && !run.rounds.length && !run.suites.length) leaveOut('log');
