"""A folder with a page that classifies images in the browser."""

import shutil
from pathlib import Path

from tlflax.export import onnx_file
from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.export.web import runtime
from tlflax.utils.files import write_json

PAGE = ('index.html', 'page.css', 'page.js')
MODEL = 'classifier.onnx'
METADATA = 'metadata.json'
MARKER = MODEL  # other folders have an index.html as well
ENTRIES = (*PAGE, *runtime.FILES, runtime.LICENSE, MODEL, METADATA)


def require() -> None:
    """Checks that there is what the page needs, before anything takes time.

    Raises:
        UserError: ONNX Runtime is not installed, or ONNX Runtime Web cannot be fetched.
    """
    onnx_file.require()
    runtime.runtime()


def write(model: Exported, path: Path) -> None:
    """Writes the page, ONNX Runtime Web and the model as ONNX into a folder.

    Args:
        model: What is exported.
        path: The folder, which exists.

    Raises:
        UserError: See `require` and `tlflax.export.onnx_file.write`.
    """
    found = runtime.runtime()
    for name in (*runtime.FILES, runtime.LICENSE):
        shutil.copyfile(found / name, path / name)
    for name in PAGE:
        shutil.copyfile(Path(runtime.__file__).parent / name, path / name)
    onnx_file.write(model, path / MODEL)
    write_json(path / METADATA, model.metadata)


def program(path: Path) -> Program:
    """Returns what the model in the folder computes, run by ONNX Runtime on the CPU."""
    return onnx_file.program(path / MODEL)
