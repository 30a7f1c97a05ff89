"""A made-up run of self-improvement, written as a run writes it: for tests of what reads run directories."""

import hashlib
import json
import pathlib
import random

from tests.stored import write_stored

NAMES = ('Hugo', 'Anna', 'Ben', 'Clara', 'Emma', 'Felix')
THINGS = ('pens', 'books', 'coins', 'apples', 'shells', 'cups')


# fmt: off


def made_question(draw: random.Random) -> tuple[str, list[int]]:
    amounts = [-1]
    while not all(0 <= sum(amounts[: n + 1]) <= 30 for n in range(len(amounts))):
        signs = [1] + [draw.choice((-1, 1)) for _ in range(draw.randint(2, 4))]
        amounts = [sign * draw.randint(1, 12) for sign in signs]
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    told = ' '.join(f'{name} {"finds" if a > 0 else "sells"} {abs(a)}.' for a in amounts[1:])
    return f'{name} has {amounts[0]} {thing}. {told} How many {thing} does {name} have?', amounts


def made_path(draw: random.Random, amounts: list[int], skill: float) -> dict:
    total, *rest = sorted(amounts, key=lambda a: (a < 0, draw.random()))
    text = ''
    for amount in rest:
        slip = draw.choice((-2, -1, 1, 2)) if draw.random() > skill else 0
        text += f' {total} {"+" if amount > 0 else "-"} {abs(amount)} = {total + amount + slip}.'
        total += amount + slip
    ended = draw.random() < 0.9 + 0.1 * skill
    text += f' The answer is {total}.' if ended else ''
    tokens = len(text.split())
    return {'text': text, 'answer': str(total) if ended else '', 'found': ended, 'ended': ended, 'tokens': tokens,
            'log_prob': -draw.expovariate(1) * tokens * (1.02 - skill), 'reward': 0.0, 'kept': 0.0}


def made_samples(draw: random.Random, questions: list, paths: int, skill: float, labelled: bool) -> list[dict]:
    rows = []
    for question, amounts in questions:
        hard = skill - 0.05 * (len(amounts) - 3) - draw.random() * 0.12
        drawn = [made_path(draw, amounts, hard) for _ in range(paths)]
        answers = [path['answer'] for path in drawn if path['found']]
        ranked = sorted(set(answers), key=answers.count, reverse=True)
        tied = len(ranked) > 1 and answers.count(ranked[0]) == answers.count(ranked[1])
        chosen = ranked[0] if ranked and not tied else ''
        share = answers.count(chosen) / len(answers) if chosen else 0.0
        kept = [path for path in drawn if share >= 0.6 and path['answer'] == chosen][:4]
        for path in kept:
            path.update(kept=1.0, reward=1.0)
        rows.append({
            'id': hashlib.blake2b(question.encode(), digest_size=8).hexdigest(), 'question': question, 'chosen': chosen,
            'share': share, 'votes': float(len(answers)), 'gold': str(sum(amounts)) if labelled else None,
            'kept_paths': len(kept), 'paths': drawn,
        })
    return rows


def around(value: float, count: int) -> dict:
    half = 1.96 * max(value * (1 - value), 0.01 / count) ** 0.5 / count**0.5
    return {'value': value, 'low': max(0.0, value - half), 'high': min(1.0, value + half)}


def histograms(rows: list[dict]) -> dict:
    shares, lengths = [0.0] * 20, [0.0] * 16
    for row in rows:
        shares[min(19, int(20 * row['share']))] += 1
        for path in row['paths']:
            lengths[min(15, path['tokens'] // 3)] += 1
    return {'share_histogram': shares, 'length_histogram': {'edges': [3.0 * n for n in range(17)], 'counts': lengths}}


def answers(row: dict, k: int) -> list[str]:
    return [path['answer'] for path in row['paths'][:k] if path['found']]


def most(row: dict, k: int) -> str:
    return max(answers(row, k), key=answers(row, k).count, default='')


def made_evaluation(number: int, rows: list[dict], paths: int) -> dict:
    count, bins = len(rows), []
    for n in range(10):
        here = [row for row in rows if min(9, int(10 * row['share'])) == n]
        mean = sum(row['share'] for row in here) / len(here) if here else None
        right = sum(row['chosen'] == row['gold'] for row in here) / len(here) if here else None
        bins.append({'low': n / 10, 'high': (n + 1) / 10, 'count': len(here), 'mean_share': mean, 'accuracy': right})
    gap = sum(b['count'] * abs(b['mean_share'] - b['accuracy']) for b in bins if b['count']) / count
    share_of = lambda test: around(sum(map(test, rows)) / count, count)  # noqa: E731
    return {
        'kind': 'evaluation', 'time': 1.76e9 + 100 + 40 * number, 'round': number, 'suite': 'held_out',
        'questions': count, 'samples_per_question': paths,
        'greedy_accuracy': share_of(lambda row: row['paths'][0]['answer'] == row['gold']),
        'majority_accuracy': share_of(lambda row: row['chosen'] == row['gold']),
        'pass_at_n': share_of(lambda row: row['gold'] in [path['answer'] for path in row['paths']]),
        'maj_at_k': {k: share_of(lambda row, k=k: most(row, k) == row['gold']) for k in (1, 2, paths)},
        'pass_at_k': {k: share_of(lambda row, k=k: row['gold'] in answers(row, k)) for k in (1, 2, paths)},
        'answered': share_of(lambda row: row['paths'][0]['found']),
        'mean_vote_share': share_of(lambda row: row['share']),
        'calibration_error': {'value': gap, 'low': gap * 0.8, 'high': gap * 1.3}, 'brier': 0.17 / (1 + number),
        'truncated': 0.04 / (1 + number), 'mean_length': 24.0 + number, 'kept_share': 0.4, 'kept_precision': 0.85,
        'reliability': bins, 'seconds': 3.1, **histograms(rows),
    }


def made_round(number: int, rows: list[dict]) -> dict:
    count, drawn = len(rows), [path for row in rows for path in row['paths']]
    mean = lambda name: sum(path[name] for path in drawn) / len(drawn)  # noqa: E731
    kept = sum(path['kept'] for path in drawn)
    return {
        'kind': 'round', 'time': 1.76e9 + 90 + 40 * number, 'round': number, 'questions': float(count),
        'labels_read': 0, 'samples': float(len(drawn)), 'answered': mean('found'), 'ended': mean('ended'),
        'mean_length': mean('tokens'), 'mean_vote_share': sum(row['share'] for row in rows) / count,
        'ties': float(sum(not r['chosen'] for r in rows)),
        'kept_questions': float(sum(row['kept_paths'] > 0 for row in rows)), 'kept_paths': kept,
        'sampled_tokens': mean('tokens') * len(drawn), 'training_tokens': kept * 78, 'replay_tokens': kept * 26,
        'loss': 0.42 / number, 'gradient_norm': 0.9, 'skipped_questions': 0, **histograms(rows),
        'seconds': {'round': 38.0 if number == 1 else 27.5, 'store': 0.8, 'checkpoint': 0.4},
    }


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def made_run(directory: pathlib.Path, rounds: int = 3, questions: int = 30, paths: int = 16) -> pathlib.Path:
    """A finished run of `rounds` rounds: as many unlabelled questions in each as there are held-out ones."""
    draw = random.Random(0)
    held_out = [made_question(draw) for _ in range(questions)]
    versions = {'python': '3.11.2', 'jax': '0.10.2', 'flax': '0.12.8'}
    metrics = [{
        'kind': 'run', 'time': 1.76e9, 'command': 'improve', 'seed': 0, 'devices': ['cpu: cpu'], 'name': 'quickstart',
        'mesh': {'data': 1, 'fsdp': 1, 'expert': 1, 'sequence': 1, 'tensor': 1}, 'parameters': 240_000,
        'bytes_per_device': 2_900_000,
        'batch': {'questions': questions, 'paths': paths}, 'versions': versions,
    }]
    metrics += [{
        'kind': 'pretrain', 'time': 1.76e9 + step / 20, 'step': step, 'loss': 0.5 + 3 * 0.99**step,
        'tokens': 3000 * step, 'learning_rate': 2e-3 * (1 - step / 620), 'seconds': step / 20,
    } for step in range(20, 601, 20)]
    metrics.append({'kind': 'compile', 'time': 1.76e9 + 40, 'seconds': 9.4})
    for number in range(rounds + 1):
        skill = 0.7 + 0.28 * (1 - 0.4**number)
        if number:
            rows = made_samples(draw, [made_question(draw) for _ in range(questions)], paths, skill, labelled=False)
            write_stored(directory / f'samples/round_{number:04d}.parquet', rows, number)
            metrics.append(made_round(number, rows))
        rows = made_samples(draw, held_out, paths, skill, labelled=True)
        write_stored(directory / f'samples/evaluation_{number:04d}.parquet', rows, number)
        metrics.append(made_evaluation(number, rows, paths))
    write_lines(directory / 'metrics.jsonl', metrics)
    (directory / 'config.gin').write_text('# effective configuration\nrounds = 3\nMajorityVote.threshold = 0.6\n')
    (directory / 'summary.json').write_text(json.dumps({
        'name': 'quickstart', 'seed': 0, 'rounds': [{'round': number} for number in range(rounds + 1)],
        'wall_seconds': 192.4, 'devices': ['cpu: cpu'], 'versions': versions, 'parameters': 240_000, 'labels_read': 0,
        'replay_examples': 2000,
    }))
    return directory


# fmt: on
