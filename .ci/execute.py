"""Run chapters top to bottom and keep their outputs: python .ci/execute.py nbs/02_detection.ipynb ...

    python .ci/execute.py --stale    runs every chapter whose saved outputs are not those of its code, in order; after Ctrl-C the same line goes on

Two kinds of output are not kept: progress and log lines (stderr), and what cells tagged `shows-texts` print, because most data sets'
licences ask for that. Which code made the outputs is written down in the notebook (see fresh.py). Run `nbdev_clean` afterwards, as the git hooks do.
"""
import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from fresh import ROOT, record, why_stale


def keep(cell):
    "The outputs of a cell that the repository keeps"
    if 'shows-texts' in cell.metadata.get('tags', []): return []
    return [o for o in cell.outputs if o.get('name') != 'stderr']


def execute(path):
    "Run one notebook in its own folder and write it back, whole or not at all"
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=None, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        cell.outputs, cell.execution_count = keep(cell), None
        cell.metadata.pop('execution', None)
    nb.metadata['fresh'] = record(nb)
    nbformat.write(nb, part := path.with_suffix('.part'))
    os.replace(part, path)
    return nb


def stale():
    "The notebooks whose saved outputs are not those of their code, in reading order, each with the first reason"
    why = {p: why_stale(nbformat.read(p, as_version=4)) for p in sorted((ROOT / 'nbs').glob('*.ipynb'))}
    return {p: w[0] for p, w in why.items() if w}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('notebooks', nargs='*', type=Path, help='to run, in this order')
    ask.add_argument('--stale', action='store_true', help='run those of nbs/ whose saved outputs are not those of their code')
    given = ask.parse_args()
    if not (given.stale or given.notebooks): ask.error('name notebooks, or say --stale')
    todo = {p: 'as asked' for p in given.notebooks} | (stale() if given.stale else {})
    if not todo: print('all saved outputs are those of the code')
    for k, (path, why) in enumerate(todo.items(), 1):
        print(f'[{k}/{len(todo)}] {path.name}: {why}', flush=True)
        start = time.perf_counter()
        try: nb = execute(path)
        except (KeyboardInterrupt, DeadKernelError, AssertionError) as e:  # nbclient answers Ctrl-C with one of them; an error of a cell is none of them
            print(f'stopped in {path.name} ({type(e).__name__}), which is as it was; {k - 1} of {len(todo)} are done. `python .ci/execute.py --stale` goes on here')
            return 130
        print(f'    {sum(c.cell_type == "code" for c in nb.cells)} cells run in {time.perf_counter() - start:.0f} s', flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
