"""Writes a trained classifier as one file for other programs.

The file takes any number of images uint8 [n, height, width, 3], RGB, of the run's image size (with
--resize, of any size), and gives class probabilities float32 [n, classes]. Its metadata has the
class names, the image size, how images are resized and the temperature. A file of safetensors holds
the parameters alone. The format web is a folder with a page that classifies images in the browser.
A model card is written beside each file.

Before the file is kept, it is run on the validation images of the run (at most 1,000) and must give
the classifier's own probabilities. The last line is one JSON object.
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    workdir: str = flags.required('DIR', 'folder of the training run')
    format: str = flags.choice(
        'onnx',
        ('onnx', 'stablehlo', 'saved_model', 'tflite', 'safetensors', 'web'),
        "the format; onnx, tflite and web need pip install 'tlflax[export]'",
    )
    output: str | None = flags.optional(
        None,
        'FILE',
        'the file to write, for saved_model and web a folder; by default classifier with the '
        'ending of the format, such as classifier.onnx, in the workdir',
    )
    step: str | None = flags.optional(
        None,
        'STEP',
        "checkpoint: 'best', 'last' or a step's number; by default the one in result.json",
    )
    precision: str = flags.choice(
        'float32',
        ('float32', 'float16', 'int8'),
        'float16: parameters with 16 bits, half the size; int8, of onnx, tflite and web: computed '
        'with 8 bits, a quarter of the size',
    )
    resize: bool = flags.switch('take images of any size, and resize them as the run does')
    calibrated: bool = flags.switch(
        'divide the logits by the temperature that fits the validation images'
    )


def main(arguments: Arguments) -> None:
    """Writes the file and prints what the check found."""
    from tlflax.workdir.folders import require_run

    require_run(arguments.workdir)

    from tlflax.export.model import Options
    from tlflax.export.run import export
    from tlflax.utils.files import dump_json
    from tlflax.workdir.mirror.read import added_to

    options = Options(arguments.calibrated, arguments.resize, arguments.precision)
    with added_to(arguments.workdir) as folder:
        found = export(folder, arguments.format, arguments.output, options, step=arguments.step)
    print(
        f'{found["file"]}: {found["bytes"] / 1e6:.1f} MB; on {found["images"]} validation images '
        f'its probabilities differ from the classifier by at most {found["max_difference"]:.2g}'
    )
    print(dump_json(found))


_EXAMPLE = '--workdir=runs/traffic --format=onnx'
COMMAND = cli.Command('tlflax.export', __doc__, Arguments, main, _EXAMPLE, runs_tensorflow=True)

if __name__ == '__main__':
    COMMAND.run()
