from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from steadyolo.cli.places import named_run, pushed
from steadyolo.spec.run_spec import make_spec
from tests.faults.disks import snapshot
from tests.faults.stores import name_of, run_folder


def test_a_push_leaves_the_best_copy_where_it_is(tmp_path: Path) -> None:
    folder, url = tmp_path / "train", f"file://{tmp_path}/store"
    checkpoints = run_folder(folder, 1)
    ledger = replace(snapshot(1).state.ledger, best_tick=int(name_of(1).rpartition(".")[2]))
    for step in range(2, 6):
        later = snapshot(step)
        checkpoints.commit(replace(later, state=replace(later.state, ledger=ledger)), parent=None)
    spec = make_spec({}, {"store.url": url, "store.keep_last": "2"})
    (folder / "steadyolo" / "spec.json").write_text(json.dumps(spec.to_dict()))
    assert pushed(folder, timeout_s=60) == []
    assert [copy.name for copy in named_run(f"{url}/train").copies()] == [name_of(step) for step in (1, 4, 5)]
