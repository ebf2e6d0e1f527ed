import time
from pathlib import Path
import pytest
from tests.faults import runs
@pytest.mark.parametrize("task", ["detect","detect","segment","pose","obb","classify"])
def test_x(task,boards,models,tmp_path):
    b, m = boards(task), models(task)
    t=time.time()
    o=runs.steadyolo(*runs.small(b,m,tmp_path/"ref"),log=tmp_path/"log").expect(0)
    print(task, time.time()-t, runs.happened(tmp_path/"ref","run_finished"), len(runs.checkpoints(tmp_path/"ref")))
    print(runs.table(tmp_path/"ref")[-1], [e["kind"] for e in runs.happened(tmp_path/"ref")])
