"""The front matter of a model card: what the Hugging Face Hub reads of it."""

from typing import Any

from tlflax.export.card.facts import UNKNOWN, Facts
from tlflax.report.page import numbers
from tlflax.utils.files import JsonObject

METRICS = {
    'accuracy': 'Accuracy',
    'balanced_accuracy': 'Balanced accuracy',
    'macro_f1': 'Macro F1',
    'macro_auroc': 'Macro AUROC',
    'expected_calibration_error': 'Expected calibration error',
    'loss': 'Cross-entropy loss',
}
"""The metrics of a card, by their keys in `result.json`."""

_TYPES = {'macro_f1': 'f1', 'macro_auroc': 'roc_auc'}  # as the Hub calls them
_LICENSES = {'CC BY 4.0': 'cc-by-4.0', 'BSD 3-Clause': 'bsd-3-clause'}


def front_matter(facts: Facts) -> dict[str, Any]:
    """Returns the values of the front matter."""
    named = {'datasets': [facts.source.name]} if facts.source.name else {}
    values: dict[str, Any] = {
        'license': _license(facts.weights_license),
        'library_name': 'tlflax',
        'pipeline_tag': 'image-classification',
        'tags': ['jax', 'flax', 'transfer-learning', facts.export.format, _backbone(facts)],
        **named,
        'metrics': [_TYPES.get(key, key) for key in METRICS],
    }
    results = [_results(facts, facts.val, 'validation')]
    if facts.test:
        results.append(_results(facts, facts.test, 'test'))
    results = [result for result in results if result['metrics']]
    if results:
        values['model-index'] = [{'name': model_name(facts), 'results': results}]
    return values


def model_name(facts: Facts) -> str:
    """Returns the name of the model: that of its workdir."""
    return facts.export.workdir_name or 'classifier'


def _license(text: str) -> str:
    """Returns the identifier of a license that is known by its name."""
    return next((key for name, key in _LICENSES.items() if text.startswith(name)), UNKNOWN)


def _backbone(facts: Facts) -> str:
    """Returns the name of the backbone, without the file of one's own."""
    return facts.export.trained.config.model.backbone.rpartition(':')[2]


def _results(facts: Facts, metrics: JsonObject, split: str) -> dict[str, Any]:
    source = facts.source
    return {
        'task': {'type': 'image-classification', 'name': 'Image classification'},
        'dataset': {
            'type': source.name or UNKNOWN,
            'name': source.what or 'images of the run',
            'split': split,
        },
        'metrics': [
            {'type': _TYPES.get(key, key), 'value': float(metrics[key]), 'name': label}
            for key, label in METRICS.items()
            if numbers.is_number(metrics.get(key))
        ],
    }
