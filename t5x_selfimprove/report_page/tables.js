'use strict';
/* The figures at the head of the page, the table of rounds, and the facts of the environment. */

function devices(held) {
  if (!Array.isArray(held)) return held ? String(held) : '–';
  const counts = new Map();
  const short = (name) => String(name).replace(/^(.+): \1$/, '$1'); // 'cpu: cpu'
  held.map(short).forEach((name) => counts.set(name, (counts.get(name) ?? 0) + 1));
  return [...counts].map(([name, count]) => `${count} × ${name}`).join(', ') || '–';
}

function change(first, last) {
  if (!known(first)) return '';
  const points = 100 * (last - first),
    sign = Math.abs(points) < 0.05 ? '±' : points > 0 ? '+' : '−';
  return `${sign}${Math.abs(points).toFixed(1)} points from ${percent(first)}`;
}

/** Tiles: [name, figure, small print]. */
function showTiles(host, run) {
  const held = run.evaluations[run.suites[0]] ?? [],
    first = held[0],
    last = held[held.length - 1];
  const tiles = [];
  if (last) {
    for (const [name, key] of [
      ['Greedy accuracy', 'greedy_accuracy'],
      [`Majority of ${last.samples_per_question}`, 'majority_accuracy'],
    ]) {
      const value = estimate(last[key])?.value,
        before = estimate(first[key])?.value;
      tiles.push([name, percent(value), first === last ? `at round ${last.round}` : change(before, value)]);
    }
  }
  if (run.rounds.length || known(run.labels_read))
    tiles.push([
      'Labels read',
      whole(run.labels_read),
      known(run.labels_read) ? `in ${run.rounds.length} rounds` : 'not in the log',
    ]);
  const sum = (name) => total(run.rounds.map((record) => record[name] ?? 0));
  if (run.rounds.length)
    tiles.push(['Paths kept to train on', whole(sum('kept_paths')), `of ${whole(sum('samples'))} sampled`]);
  tiles.push(['Wall time', duration(run.seconds), run.summary ? '' : 'first to last record']);
  const parameters = run.summary?.parameters ?? run.run.parameters;
  tiles.push([
    'Device',
    devices(run.summary?.devices ?? run.run.devices),
    known(parameters) ? `${whole(parameters)} parameters` : '',
  ]);
  host.append(
    ...tiles.map(([name, value, small]) =>
      element('div', {}, element('dt', {}, name), element('dd', {}, value, element('small', {}, small))),
    ),
  );
}

const cell = (text, small) => element('td', {}, text, small ? element('small', {}, small) : null);
function rangeCell(held, format = percent) {
  const made = estimate(held);
  if (!made) return cell('–');
  const bare = (value) => format(value).replace('\u00a0%', '');
  return cell(format(made.value), known(made.low) && known(made.high) ? `${bare(made.low)}–${bare(made.high)}` : null);
}

/** Columns: [name, cell of (evaluation, training)]. What a round trained on stands in the table of the first suite. */
function columnsOf(held, withTraining) {
  const paths = held[0]?.samples_per_question ?? 'N';
  const share = (part, all) => (known(part) && all ? `${percent(part / all)} of ${whole(all)}` : null);
  const spent = (training) => Object.values(training.seconds ?? {}).filter(known);
  const evaluation = [
    ['Greedy', (e) => rangeCell(e.greedy_accuracy)],
    [`Majority of ${paths}`, (e) => rangeCell(e.majority_accuracy)],
    [`pass@${paths}`, (e) => rangeCell(e.pass_at_n)],
    ['Answered', (e) => rangeCell(e.answered)],
    ['Vote share', (e) => rangeCell(e.mean_vote_share)],
    ['Calibration error', (e) => rangeCell(e.calibration_error)],
  ];
  const training = [
    ['Questions kept', (_, t) => cell(whole(t.kept_questions), share(t.kept_questions, t.questions))],
    ['Paths kept', (_, t) => cell(whole(t.kept_paths), share(t.kept_paths, t.samples))],
    [
      'Training tokens',
      (_, t) => cell(whole(t.training_tokens), known(t.replay_tokens) ? `replay ${whole(t.replay_tokens)}` : null),
    ],
    ['Loss', (_, t) => cell(known(t.loss) ? t.loss.toFixed(3) : '–')],
  ];
  const time = [
    'Time',
    (e, t) =>
      cell(
        spent(t).length ? duration(total(spent(t))) : '–',
        known(e.seconds) ? `evaluation ${duration(e.seconds)}` : null,
      ),
  ];
  return [...evaluation, ...(withTraining ? training : []), time];
}

function roundTable(suite, held, training, several) {
  const columns = columnsOf(held, training.length),
    label = `Rounds, ${suiteName(suite)} questions`;
  const rounds = [...new Set([...held, ...training].map((record) => record.round))].sort((a, b) => a - b);
  const rows = rounds.map((round) =>
    element(
      'tr',
      {},
      element('th', { scope: 'row' }, round),
      columns.map(([, make]) => make(atRound(held, round) ?? {}, atRound(training, round) ?? {})),
    ),
  );
  if (!rows.length)
    rows.push(
      element(
        'tr',
        {},
        element('td', { class: 'empty', colspan: columns.length + 1 }, 'No round has been written yet.'),
      ),
    );
  return element(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label },
    element(
      'table',
      {},
      several ? element('caption', {}, label) : null,
      element(
        'thead',
        {},
        element(
          'tr',
          {},
          ['Round', ...columns.map(([name]) => name)].map((name) => element('th', { scope: 'col' }, name)),
        ),
      ),
      element('tbody', {}, rows),
    ),
  );
}

function showTables(host, run) {
  const suites = run.suites.length ? run.suites : ['held_out'];
  host.append(
    ...suites.map((suite, i) =>
      roundTable(suite, run.evaluations[suite] ?? [], i ? [] : run.rounds, suites.length > 1),
    ),
  );
}

function showEnvironment(host, run) {
  const { kind, time, ...about } = run.run,
    { rounds, ...ended } = run.summary ?? {};
  const facts = Object.entries({ ...about, ...ended });
  const plain = (value) =>
    typeof value === 'number'
      ? value.toLocaleString('en-US', { maximumFractionDigits: 3, useGrouping: Math.abs(value) >= 1e4 })
      : value === null
        ? '–'
        : typeof value === 'object'
          ? JSON.stringify(value)
          : String(value);
  const text = (name, value) => {
    if (name === 'devices') return devices(value);
    if (value && typeof value === 'object' && !Array.isArray(value))
      return Object.entries(value)
        .map(([key, held]) => `${key} ${plain(held)}`)
        .join(' · ');
    return plain(value);
  };
  const started = known(time) ? `${new Date(1000 * time).toISOString().slice(0, 16).replace('T', ' ')} UTC` : null;
  if (started) facts.push([run.starts > 1 ? `last of ${run.starts} starts` : 'started', started]);
  if (!facts.length) {
    host.append(element('p', { class: 'empty' }, 'Not in the log.'));
    return;
  }
  host.append(
    element(
      'dl',
      { class: 'facts' },
      facts.flatMap(([name, value]) => [
        element('dt', {}, name.replaceAll('_', ' ')),
        element('dd', {}, text(name, value)),
      ]),
    ),
  );
}
