'use strict';
/* The browser of questions. Only one page of them is in the document, and paths are made when a question is opened. */

const QUESTIONS_A_PAGE = 20;

/** Whether an answer is the label: answers are canonical, labels may still have their thousands separators. */
function same(answer, label) {
  const bare = (text) =>
    String(text)
      .toLowerCase()
      .replace(/[\s,$]/g, '')
      .replace(/^(-?\d+)\.0*$/, '$1');
  return answer === label || bare(answer) === bare(label);
}

/** A question as it was packed: [id, question, chosen, share, votes, gold, kept paths, paths]. */
function unpack(file, row, place) {
  const [id, question, chosen, share, votes, gold, keptPaths, packed] = row;
  const paths = packed.map(([text, answer, found, ended, tokens, logProb, reward, kept]) => ({
    text,
    answer,
    found,
    ended,
    tokens,
    logProb,
    reward,
    kept,
  }));
  const counts = new Map();
  paths.forEach((path) => {
    if (path.found) counts.set(path.answer, (counts.get(path.answer) ?? 0) + 1);
  });
  const ranking = [...counts].sort((a, b) => b[1] - a[1] || (b[0] === chosen) - (a[0] === chosen));
  return {
    file,
    place,
    id,
    question,
    chosen,
    share,
    votes,
    gold,
    paths,
    ranking,
    kept: keptPaths > 0,
    keptPaths,
    none: !ranking.length,
    tie: ranking.length > 1 && ranking[0][1] === ranking[1][1],
    correct: gold !== null && chosen !== '' && same(chosen, gold),
    labelled: gold !== null,
    text: [question, chosen, ...paths.map((path) => path.text)].join('\n').toLowerCase(),
  };
}

const FILTERS = {
  all: ['All', () => true],
  correct: ['Majority correct', (q) => q.labelled && q.correct],
  wrong: ['Majority wrong', (q) => q.labelled && !q.correct],
  kept: ['Kept', (q) => q.kept, 'Would be kept'],
  refused: ['Not kept', (q) => !q.kept, 'Would not be kept'],
  tie: ['Tie', (q) => q.tie],
  none: ['No answer', (q) => q.none],
};
const SORTS = {
  stored: ['As stored', (a, b) => a.place - b.place],
  high: ['Vote share, high first', (a, b) => b.share - a.share || a.place - b.place],
  low: ['Vote share, low first', (a, b) => a.share - b.share || a.place - b.place],
  long: ['Longest path first', (a, b) => longest(b) - longest(a) || a.place - b.place],
};
const longest = (q) => Math.max(0, ...q.paths.map((path) => path.tokens));

function fileName(file) {
  const where = file.kind === 'round' ? 'training questions' : `${suiteName(file.suite || 'held_out')} questions`;
  return `Round ${file.round}: ${where}`;
}
function fileCount(file) {
  const asked = known(file.asked) && file.asked !== file.stored ? `; ${whole(file.asked)} were asked` : '';
  const chosen = file.questions.length < file.stored ? ', evenly spaced' : '';
  return `This page holds ${whole(file.questions.length)} of ${whole(file.stored)} stored${chosen}${asked}.`;
}

/** The text with what is searched for marked. */
function marked(text, wanted) {
  if (!wanted) return [text];
  const parts = [],
    lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), element('mark', {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...parts, text.slice(from)];
}

function voteBar(q) {
  const tone = (answer) => {
    if (q.labelled && same(answer, q.gold)) return 'correct';
    if (answer !== q.chosen) return '';
    return q.labelled ? 'wrong' : 'chosen';
  };
  const said = q.ranking.map(([answer, count]) => `${answer}: ${count}`);
  const silent = q.paths.filter((path) => !path.found).length;
  if (silent) said.push(`no answer: ${silent}`);
  return element(
    'div',
    { class: 'votes', role: 'img', 'aria-label': `Votes: ${said.join(', ')}`, title: said.join('  ·  ') },
    q.ranking.map(([answer, count]) => element('span', { class: tone(answer), style: `flex-grow: ${count}` }, answer)),
    silent ? element('span', { class: 'none', style: `flex-grow: ${silent}` }, silent > 1 ? 'none' : '') : null,
  );
}

function tags(q) {
  const made = [];
  if (q.labelled)
    made.push(
      element('span', { class: `tag ${q.correct ? 'good' : 'bad'}` }, q.correct ? '✓ correct' : `✗ label ${q.gold}`),
    );
  const would = q.file.kind === 'round' ? '' : 'would be ';
  if (q.kept)
    made.push(
      element(
        'span',
        { class: 'tag kept' },
        `${whole(q.keptPaths)} ${q.keptPaths === 1 ? 'path' : 'paths'} ${would}kept`,
      ),
    );
  else if (q.file.kind === 'round') made.push(element('span', { class: 'tag' }, 'not kept'));
  if (q.tie) made.push(element('span', { class: 'tag' }, 'tie'));
  if (q.none) made.push(element('span', { class: 'tag' }, 'no answer'));
  return made;
}

function pathView(q, path, wanted) {
  const each = path.tokens ? ` (${(path.logProb / path.tokens).toFixed(2)} a token)` : '';
  const would = q.file.kind === 'round' ? '' : 'would be ';
  const weight = `${would}kept${path.kept === 1 ? '' : `, weight ${figure(path.kept)}`}`;
  const facts = [
    path.kept > 0 ? element('b', { class: 't1' }, weight) : null,
    element('span', {}, `${whole(path.tokens)} tokens`),
    known(path.logProb)
      ? element('span', {}, `log-prob ${path.logProb.toFixed(2).replace('-', '−')}${each.replace('-', '−')}`)
      : null,
    known(path.reward) && path.reward !== 0 && path.reward !== 1
      ? element('span', {}, `reward ${figure(path.reward)}`)
      : null,
    path.ended ? null : element('span', { class: 'tag bad' }, 'cut off'),
  ];
  return element(
    'div',
    { class: `path${path.kept > 0 ? ' kept' : ''}` },
    element('p', {}, marked(path.text.trim(), wanted)),
    element('div', { class: 'meta' }, facts),
  );
}

function pathsView(q, wanted) {
  const groups = q.ranking.map(([answer, count]) => [
    answer,
    count,
    q.paths.filter((path) => path.found && path.answer === answer),
  ]);
  const silent = q.paths.filter((path) => !path.found);
  const made = groups.flatMap(([answer, count, paths]) => [
    element(
      'h3',
      {},
      `Answer ${answer}`,
      element('span', { class: 'tag' }, `${count} of ${q.paths.length} paths`),
      answer === q.chosen ? element('span', { class: 'tag kept' }, 'chosen') : null,
      q.labelled && same(answer, q.gold) ? element('span', { class: 'tag good' }, '✓ label') : null,
    ),
    ...paths.map((path) => pathView(q, path, wanted)),
  ]);
  if (silent.length) {
    made.push(
      element(
        'h3',
        {},
        'No answer found',
        element('span', { class: 'tag' }, `${silent.length} of ${q.paths.length} paths`),
      ),
    );
    made.push(...silent.map((path) => pathView(q, path, wanted)));
  }
  return made;
}

/** What the same question got in the other rounds, as buttons that lead there. */
function history(q, others, go) {
  if (others.length < 2) return null;
  return element(
    'div',
    { class: 'history' },
    'In each round:',
    others.map((other) => {
      const verdict = other.labelled ? (other.correct ? ' ✓' : ' ✗') : '';
      const button = element(
        'button',
        { type: 'button', 'aria-current': other === q },
        `${other.file.round}: ${other.chosen ? `${other.chosen} ${percent(other.share, 0)}` : 'none'}${verdict}`,
      );
      button.addEventListener('click', () => go(other));
      return button;
    }),
  );
}

function questionView(q, wanted, others, go) {
  const votes = `${whole(q.votes)} votes`;
  const share = q.none ? 'no votes' : q.chosen ? `${percent(q.share, 0)} of ${votes}` : votes;
  const summary = element(
    'summary',
    {},
    element('div', { class: 'ask' }, element('span', {}, marked(q.question, wanted))),
    voteBar(q),
    element(
      'div',
      { class: 'verdict' },
      element('span', {}, 'chosen ', element('b', {}, q.chosen || 'none')),
      element('span', {}, share),
      tags(q),
    ),
  );
  const view = element('details', { class: 'question', id: `q-${q.file.kind}-${q.file.round}-${q.place}` }, summary);
  view.addEventListener('toggle', () => {
    if (view.open && view.children.length === 1) {
      view.append(element('div', { class: 'paths' }, history(q, others(q), go), pathsView(q, wanted)));
    }
  });
  return view;
}

function controlRow(files, state, refresh) {
  const field = (name, control, wide) => element('label', { class: wide ? 'wide' : null }, name, control);
  const file = element(
    'select',
    {},
    files.map((one, i) => element('option', { value: i, selected: i === state.file }, fileName(one))),
  );
  const sort = element(
    'select',
    {},
    Object.entries(SORTS).map(([key, [name]]) => element('option', { value: key }, name)),
  );
  const search = element('input', { type: 'search', placeholder: 'words in a question, answer or path' });
  file.addEventListener('change', () => refresh({ file: +file.value, page: 0, open: null }));
  sort.addEventListener('change', () => refresh({ sort: sort.value, page: 0 }));
  search.addEventListener('input', () => refresh({ search: search.value.trim().toLowerCase(), page: 0 }));
  state.reset = (to) => {
    file.value = to;
    search.value = '';
  };
  return element(
    'div',
    { class: 'controls' },
    field('Questions', file),
    field('Search', search, true),
    field('Order', sort),
  );
}

function chips(state, questions, refresh) {
  const held = questions.some((q) => q.file.kind === 'evaluation');
  const fits = Object.entries(FILTERS).filter(([key]) => {
    if (key === 'correct' || key === 'wrong') return questions.some((q) => q.labelled);
    if (key === 'kept' || key === 'refused') return !held || questions.some((q) => q.kept);
    return true;
  });
  if (!fits.some(([key]) => key === state.show)) state.show = 'all';
  return [
    element('legend', {}, 'Show'),
    ...fits.map(([key, [name, test, evaluated]]) => {
      const input = element('input', { type: 'radio', name: 'show', value: key, checked: key === state.show });
      input.addEventListener('change', () => refresh({ show: key, page: 0 }));
      return element(
        'label',
        {},
        input,
        `${held ? (evaluated ?? name) : name} `,
        element('small', {}, whole(questions.filter(test).length)),
      );
    }),
  ];
}

function pager(state, last, refresh) {
  const step = (name, to, possible) => {
    const button = element('button', { type: 'button', disabled: !possible }, name);
    button.addEventListener('click', () => {
      refresh({ page: to });
      place('questions').scrollIntoView();
    });
    return button;
  };
  return [
    step('← Previous', state.page - 1, state.page > 0),
    `page ${state.page + 1} of ${last + 1}`,
    step('Next →', state.page + 1, state.page < last),
  ];
}

function showBrowser(host, files) {
  if (!files.some((file) => file.questions.length)) {
    host.append(element('p', { class: 'card empty' }, 'No samples have been stored by this run yet.'));
    return;
  }
  const cache = new Map();
  const questions = (i) =>
    cache.get(i) ??
    cache
      .set(
        i,
        files[i].questions.map((row, at) => unpack(files[i], row, at)),
      )
      .get(i);
  const others = (q) =>
    files.flatMap((file, i) =>
      file.kind === q.file.kind && file.suite === q.file.suite ? questions(i).filter((other) => other.id === q.id) : [],
    );
  const isHeld = (file) => file.kind === 'evaluation' && file.questions.length;
  const state = { file: Math.max(files.findLastIndex(isHeld), 0), show: 'all', sort: 'stored', search: '', page: 0 };
  const filter = element('fieldset', { class: 'chips' }),
    count = element('p', { class: 'count', 'aria-live': 'polite' });
  const list = element('div', {}),
    pages = element('div', { class: 'pages' });

  const go = (q) => {
    const to = files.indexOf(q.file);
    state.reset(to);
    refresh({ file: to, show: 'all', search: '', page: 0, open: q });
  };
  function refresh(change) {
    const chipsStay = 'page' in change && Object.keys(change).length === 1;
    Object.assign(state, change);
    const all = questions(state.file),
      found = all.filter((q) => q.text.includes(state.search));
    if (!chipsStay && !('show' in change && !('file' in change)))
      filter.replaceChildren(...chips(state, found, refresh));
    const matching = found.filter(FILTERS[state.show][1]).sort(SORTS[state.sort][1]);
    const last = Math.max(0, Math.ceil(matching.length / QUESTIONS_A_PAGE) - 1);
    if (change.open) state.page = Math.floor(matching.indexOf(change.open) / QUESTIONS_A_PAGE);
    const from = state.page * QUESTIONS_A_PAGE,
      here = matching.slice(from, from + QUESTIONS_A_PAGE);
    const span = here.length ? `${whole(from + 1)}–${whole(from + here.length)} of ${whole(matching.length)}` : 'None';
    count.textContent = `${span} matching. ${fileCount(files[state.file])}`;
    list.replaceChildren(...here.map((q) => questionView(q, state.search, others, go)));
    pages.replaceChildren(...(last ? pager(state, last, refresh) : []));
    if (change.open) {
      const view = list.children[here.indexOf(change.open)];
      view.open = true;
      view.querySelector('summary').focus();
    }
  }
  host.append(controlRow(files, state, refresh), filter, count, list, pages);
  refresh({ file: state.file });
}
