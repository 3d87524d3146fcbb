"""The sentences of a model card that depend on the run."""

from pathlib import Path

from tlflax.export.card.facts import Export, Facts
from tlflax.utils import python_file

OPTIMISTIC = (
    'The validation images chose it, so their metrics are optimistic: images that had no part in '
    'any choice would show how good it is.'
)

_PRECISIONS = {
    'float16': ' Its parameters have 16 bits.',
    'int8': ' Its parameters and activations have 8 bits.',
}


def part_name(name: str) -> str:
    """Returns the name of a backbone or head; one's own without the folder of its file."""
    if not python_file.is_spec(name):
        return name
    path, _, what = name.partition(':')[2].rpartition(':')
    return f'{what} of {Path(path).name}'


def program_input(export: Export) -> str:
    """Returns what the file takes."""
    if export.format == 'safetensors':
        return 'none: the file holds parameters and no program'
    metadata = export.metadata
    height, width = metadata['image_height'], metadata['image_width']
    if metadata.get('resized') == 'true':
        return 'uint8 [images, height, width, 3], RGB, of any height and width'
    return (
        f'uint8 [images, {height}, {width}, 3], RGB, resized by {metadata["interpolation"]} '
        f'interpolation ({metadata["resize"]})'
    )


def measured(facts: Facts) -> str:
    """Returns what the metrics are of."""
    count = facts.val['num_examples']
    if not facts.of_file:
        return (
            f'The {count:,} validation images of the run, by the classifier whose probabilities '
            'the file gives.'
        )
    return f'What this file itself gave for {count:,} validation images of the run.'


def chosen(facts: Facts) -> list[str]:
    """Returns how the step and the recipe were chosen, and what that means for the metrics."""
    stopping, run = facts.export.trained.config.early_stopping, facts.run
    step = facts.export.trained.step
    found = []
    if run is None:
        found.append(f'The run was not finished when step {step} was exported.')
    elif not facts.is_result:
        found.append(
            f'Step {step} was named for the export; the run itself chose step '
            f'{run.result.get("step")}.'
        )
    elif stopping.restore_best and stopping.monitor:
        best, epochs = run.result['best_epoch'], run.result['epochs_run']
        found.append(
            f'Step {step} is that of epoch {best} of {epochs}, the one with the best '
            f'{stopping.monitor}.'
        )
    else:
        found.append(f'Step {step} is that of the last epoch, {run.result["epochs_run"]}.')
    if run is not None and run.tried_note:
        found.append(f'{len(run.tried)} heads were tried: {run.tried_note}')
    if facts.is_result and not stopping.monitor.startswith('val_'):
        found.append(
            'No metric of the validation images chose the epoch; whoever compared several runs by '
            'them still made their metrics optimistic.'
        )
    else:
        found.append(OPTIMISTIC)
    if facts.export.metadata['calibrated'] == 'true':
        found.append(
            'The temperature was fitted to the validation images too, so their loss and their '
            'calibration error are optimistic.'
        )
    if facts.test:
        found.append('The test images had no part in the run.')
    return found


def checked(facts: Facts) -> str:
    """Returns what the check of the file found."""
    found, precision = facts.export.found, facts.export.metadata['precision']
    others, difference = found['labels_differ'], found['max_difference']
    differ = {0: 'no image gets', 1: '1 of them gets'}.get(others, f'{others:,} of them get')
    right, own = (f'{found[key]:.2%}' for key in ('accuracy', 'classifier_accuracy'))
    return (
        f'Before the file was kept, it was run on {found["images"]:,} validation images: its '
        f'probabilities differ from those of the classifier by at most {difference:.2g}, and '
        f'{differ} another class. It classifies {right} of them correctly, the classifier {own}.'
    ) + _PRECISIONS.get(precision, '')
