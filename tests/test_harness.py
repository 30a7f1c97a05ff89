"""The layout that tools for lm-evaluation-harness read."""

import numpy as np

from t5x_selfimprove.evaluate import summarise
from t5x_selfimprove.harness import harness_results
from tests.test_evaluate import results


def test_layout():
    found = summarise(results([1.0, 0.75, 0.5], [1, 1, 0]), 4)
    direct = summarise(results([1.0, 0.75, 0.5], [1, 1, 0], standard_correct=[0, 1, 0]), 4, at=(4,), standard=True)
    told = harness_results(
        {'gsm8k': found, 'strategyqa': direct}, {'gsm8k': 'number', 'strategyqa': 'yes_no'}, {'model': 'runs/one'}
    )
    gsm8k, strategyqa = told['results']['gsm8k'], told['results']['strategyqa']
    assert gsm8k['alias'] == 'gsm8k' and gsm8k['exact_match,strict-match'] == 2 / 3
    assert gsm8k['exact_match_stderr,strict-match'] == np.std([1, 1, 0], ddof=1) / 3**0.5
    assert {name for name in gsm8k if name.startswith('exact_match,')} == {
        f'exact_match,{how}' for how in ('strict-match', 'majority', 'weighted', 'maj@1', 'maj@2', 'maj@4')
    }
    assert {name.split(',')[0] for name in gsm8k} == {
        'alias', 'exact_match', 'exact_match_stderr', *(f'pass@{k}{end}' for k in (1, 2, 4) for end in ('', '_stderr')),
    }  # fmt: skip
    assert strategyqa['acc,standard'] == 1 / 3 and strategyqa['pass@4,none'] == 2 / 3
    assert told['n-samples'] == {name: {'original': 3, 'effective': 3} for name in told['results']}
    assert told['higher_is_better'] == {'gsm8k': {'exact_match': True}, 'strategyqa': {'acc': True}}
    assert told['config'] == {'model': 'runs/one'}
