"""How a file is used: a short program for each format."""

import shlex
import textwrap
from collections.abc import Mapping

from tlflax.utils.errors import printable

_PHOTO = """
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')
"""
_RESIZED = {
    'stretch': 'photo.resize({size}, Image.Resampling.{filter})',
    'pad': 'ImageOps.pad(photo, {size}, Image.Resampling.{filter})',
    'crop': 'ImageOps.fit(photo, {size}, Image.Resampling.{filter})',
}

_PROGRAMS = {
    'onnx': """
        import json

        import numpy as np
        import onnxruntime
        {photo}
        session = onnxruntime.InferenceSession({file!r})
        (probabilities,) = session.run(None, {{'image': np.asarray(photo)[None]}})
        classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])
        print(classes[probabilities[0].argmax()], probabilities[0].max())
    """,
    'stablehlo': """
        import json
        import zipfile

        import jax
        import numpy as np
        {photo}
        with zipfile.ZipFile({file!r}) as file:
            program = jax.export.deserialize(bytearray(file.read('module.jax_export')))
            classes = json.loads(json.loads(file.read('metadata.json'))['classes'])
        probabilities = program.call(np.asarray(photo)[None])
        print(classes[probabilities[0].argmax()], probabilities[0].max())
    """,
    'safetensors': """
        import json

        import safetensors

        with safetensors.safe_open({file!r}, 'numpy') as file:
            classes = json.loads(file.metadata()['classes'])
            arrays = {{name: file.get_tensor(name) for name in file.keys()}}
        print(classes, len(arrays), 'arrays')
    """,
    'saved_model': """
        import json

        import numpy as np
        import tensorflow as tf
        {photo}
        program = tf.saved_model.load({file!r}).signatures['serving_default']
        probabilities = program(image=tf.constant(np.asarray(photo)[None]))['probabilities'].numpy()
        with open({metadata!r}) as file:
            classes = json.loads(json.load(file)['classes'])
        print(classes[probabilities[0].argmax()], probabilities[0].max())
    """,
    'tflite': """
        import json
        import zipfile

        import numpy as np
        from ai_edge_litert.interpreter import Interpreter
        {photo}
        interpreter = Interpreter({file!r})
        (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(given['index'], (1, *np.asarray(photo).shape))
        interpreter.allocate_tensors()
        interpreter.set_tensor(given['index'], np.asarray(photo)[None])
        interpreter.invoke()
        probabilities = interpreter.get_tensor(result['index'])
        with zipfile.ZipFile({file!r}) as file:
            classes = json.loads(json.loads(file.read('metadata.json'))['classes'])
        print(classes[probabilities[0].argmax()], probabilities[0].max())
    """,
}
_COMMANDS = {'web': 'python -m http.server --bind=127.0.0.1 --directory={file}\n'}


def usage(name: str, file: str, metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns the language and the code that uses a file in the folder it is in.

    Args:
        name: The format, a key of `tlflax.export.run.FORMATS`.
        file: The name of the file.
        metadata: See `tlflax.export.model.describe`.

    Returns:
        None for a format that is not known here.
    """
    if name in _COMMANDS:
        return 'bash', _COMMANDS[name].format(file=shlex.quote(printable(file)))
    if name not in _PROGRAMS:
        return None
    code = textwrap.dedent(_PROGRAMS[name]).strip()
    where = f'{file}/assets.extra/metadata.json'
    found = code.format(photo=_photo(metadata), file=file, metadata=where)
    return 'python', f'{found}\n'


def _photo(metadata: Mapping[str, str]) -> str:
    """Returns code that reads a photo as the program takes it."""
    code = _PHOTO.lstrip()
    if metadata.get('resized') == 'true':
        return code
    size = f'({metadata["image_width"]}, {metadata["image_height"]})'
    line = _RESIZED[metadata['resize']]
    return code + f'photo = {line.format(size=size, filter=metadata["interpolation"].upper())}\n'
