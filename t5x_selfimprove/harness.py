"""Results in the layout of lm-evaluation-harness, for the tools that read its results.json.

    results / TASK / "METRIC,FILTER" and "METRIC_stderr,FILTER"

METRIC is `acc` where answers are options or yes and no, else `exact_match` (of the canonical answers); `pass@k` beside
it. FILTER says how the answer came about: `strict-match` is greedy decoding (what stands behind the trigger phrase),
`standard` greedy decoding of the answer at once, `maj@k` the majority of k samples, `majority` and `weighted` the votes
of all N. Other than there, `maj@k` and `pass@k` are exact means over the subsets of the samples.
"""

from collections.abc import Mapping
from typing import Any

CHOICES = ('option', 'yes_no')  # kinds of answers that are one of a few


def harness_results(
    suites: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str], model: Mapping[str, Any]
) -> dict[str, Any]:
    """The results of some suites.

    Args:
      suites: by task name, what `evaluate.summarise` returns.
      kinds: by task name, the kind of its answers.
      model: what is to be said of the model.
    """
    metrics = {name: 'acc' if kinds[name] in CHOICES else 'exact_match' for name in suites}
    return {
        'results': {name: {'alias': name, **_of_task(found, metrics[name])} for name, found in suites.items()},
        'n-samples': {
            name: {'original': found['questions'], 'effective': found['questions']} for name, found in suites.items()
        },
        'higher_is_better': {name: {metric: True} for name, metric in metrics.items()},
        'config': dict(model),
    }


def _of_task(found: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    named = {f'{metric},strict-match': found['greedy_accuracy']}
    if 'standard_accuracy' in found:
        named[f'{metric},standard'] = found['standard_accuracy']
    named[f'{metric},majority'] = found['majority_accuracy']
    named[f'{metric},weighted'] = found['weighted_accuracy']
    named |= {f'{metric},maj@{k}': value for k, value in found['maj_at_k'].items()}
    named |= {f'pass@{k},none': value for k, value in found['pass_at_k'].items()}
    told = {}
    for name, value in named.items():
        told[name] = value['value']
        told[name.replace(',', '_stderr,')] = value['stderr']
    return told
