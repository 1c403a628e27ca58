"""Run chapters top to bottom and keep their outputs: python .ci/execute.py nbs/02_detection.ipynb ...

Two kinds of output are not kept: progress and log lines (stderr), and what cells tagged `shows-texts` print, because most data sets'
licences ask for that. Run `nbdev_clean` afterwards, as the git hooks do.
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def keep(cell):
    "The outputs of a cell that the repository keeps"
    if 'shows-texts' in cell.metadata.get('tags', []): return []
    return [o for o in cell.outputs if o.get('name') != 'stderr']


def execute(path):
    "Run one notebook in its own folder and write it back"
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=None, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        cell.outputs, cell.execution_count = keep(cell), None
        cell.metadata.pop('execution', None)
    nbformat.write(nb, path)
    print(f'{path.name}: {sum(c.cell_type == "code" for c in nb.cells)} cells run')


if __name__ == '__main__':
    for path in sys.argv[1:]: execute(Path(path))
