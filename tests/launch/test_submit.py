"""What reaches sbatch, what it may answer, and what stands in the journals afterwards."""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written import REFUSES, RUNS, TAKES, of_type, only_sweep, written

from clusterduck.errors import ConfigError, SubmissionError
from clusterduck.events import (
    BatchClosed,
    BatchSubmitted,
    LaunchEnded,
    LaunchStarted,
    RunsClosed,
    RunsPlanned,
)
from clusterduck.launch.payload import Payload
from clusterduck.launch.watch import Watch
from clusterduck.paths import LedgerPaths


def test_one_job_for_all_runs(make_launcher: Any, fake_slurm: Any, own_ledger: Path, project: Path, say: Any) -> None:
    folder = fake_slurm(sbatch=TAKES)
    launcher = make_launcher("slurm", "hydra.launcher.parallel_runs_per_node=4", "hydra.launcher.partition=duck")
    answers = launcher.launch([["lr=1"], ["lr=2"], ["lr=3"]], 0)
    assert [answer.overrides for answer in answers] == [["lr=1"], ["lr=2"], ["lr=3"]]
    assert [answer.return_value for answer in answers] == [None] * 3
    sbatch = (folder / "taken").read_text()
    assert "#SBATCH --partition=duck" in sbatch
    assert "#SBATCH --time=60" in sbatch
    assert "--kill-on-bad-exit=0 --cpu-bind=none" in sbatch
    assert "--array" not in sbatch
    paths = only_sweep(own_ledger)
    assert paths.root.parent.parent == project / "out"
    events = written(paths)
    started = of_type(LaunchStarted, events)[0]
    assert (started.launcher, started.job_name, started.cwd) == ("slurm", "train", str(project))
    assert of_type(RunsPlanned, events)[0].runs == [[0, ["lr=1"]], [1, ["lr=2"]], [2, ["lr=3"]]]
    submitted = of_type(BatchSubmitted, events)[0]
    assert (submitted.batch, submitted.job_id) == ("0-0", "4711")
    log_folder = Path(paths.place(submitted.log_dir))
    assert log_folder == project / "out" / ".submitit" / "4711"
    (pickled,) = log_folder.glob("*submitted.pkl")
    agent = pickle.loads(pickled.read_bytes()).function
    assert (agent.settings.first_run, agent.settings.stop_run, agent.settings.parallel_runs_per_node) == (0, 3, 4)
    assert Payload.load(paths.payload(0).read_bytes()).overrides == [["lr=1"], ["lr=2"], ["lr=3"]]
    assert f"Sweep {paths.sweep}: 3 runs in 1 job to Slurm, 4 at a time" in say()
    assert "stop with `scancel 4711`" in say()


def test_several_jobs_are_one_array(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    folder = fake_slurm(sbatch=TAKES)
    launcher = make_launcher(
        "slurm",
        "hydra.launcher.total_runs_per_node=4",
        "hydra.launcher.nodes=2",
        "hydra.launcher.array_parallelism=2",
        "hydra.launcher.signal_delay_s=30",
        "hydra.launcher.additional_parameters={mail-type: BEGIN}",
        "hydra.launcher.setup=['echo hello']",
        "hydra.launcher.python='singularity exec image python'",
        "hydra.launcher.mem_gb=1.5",
    )
    launcher.launch([[f"lr={number}"] for number in range(20)], 0)
    sbatch = (folder / "taken").read_text()
    for line in ("--array=0-2%2", "--nodes=2", "--ntasks-per-node=1", "--signal=USR2@30", "--mail-type=BEGIN"):
        assert f"#SBATCH {line}" in sbatch
    assert "#SBATCH --mem=1536MB" in sbatch
    assert "\necho hello\n" in sbatch
    assert "singularity exec image python -u -m submitit" in sbatch
    watch = Watch(only_sweep(own_ledger))
    watch.look()
    jobs = {batch: view.submitted.job_id for batch, view in watch.batches.items() if view.submitted}
    assert jobs == {"0-0": "4711_0", "0-1": "4711_1", "0-2": "4711_2"}
    planned = {event.batch: event for event in written(only_sweep(own_ledger)) if event.name == "batch"}
    assert [(planned[batch].first, planned[batch].stop) for batch in jobs] == [(0, 8), (8, 16), (16, 20)]


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [
        (
            "echo 'sbatch: error: invalid partition specified: duck' >&2; exit 1\n",
            "sbatch refused the job: sbatch: error: invalid partition specified: duck",
        ),
        ("printf 'no \\033[31mred\\007 words\\n' >&2; exit 1\n", r"sbatch refused the job: no \[31mred words"),
        (
            "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1\n",
            r"sbatch refused the job: .* \(connect failure\)",
        ),
    ],
)
def test_a_refusal_is_said_in_sbatchs_words_and_nothing_stays_pending(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, capfd: Any, sbatch: str, message: str
) -> None:
    fake_slurm(sbatch=sbatch)
    launcher = make_launcher("slurm", "hydra.launcher.total_runs_per_node=2")
    with pytest.raises(SubmissionError, match=message):
        launcher.launch([["lr=1"], ["lr=2"], ["lr=3"]], 0)
    events = written(only_sweep(own_ledger))
    assert [(event.batch, event.state) for event in of_type(BatchClosed, events)] == [
        ("0-0", "FAILED"),
        ("0-1", "FAILED"),
    ]
    (closed,) = of_type(RunsClosed, events)
    assert closed.ranges == [[0, 2], [2, 3]]
    assert closed.reason.startswith("sbatch")
    assert len(of_type(LaunchEnded, events)) == 1
    assert not of_type(BatchSubmitted, events)
    assert "\x1b" not in capfd.readouterr().err
    assert own_ledger.exists()


def test_a_refused_folder_may_be_used_again(make_launcher: Any, fake_slurm: Any) -> None:
    fake_slurm(sbatch=REFUSES)
    with pytest.raises(SubmissionError):
        make_launcher("slurm").launch([["lr=1"]], 0)
    fake_slurm(sbatch=TAKES)
    make_launcher("slurm").launch([["lr=1"]], 0)


def test_jobs_that_were_taken_before_a_refusal_stay(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(
        sbatch='if [ -e "$0.once" ]; then ' + REFUSES + 'fi; touch "$0.once"; echo "Submitted batch job 7"\n',
        scontrol='echo "MaxArraySize            = 2"\n',
    )
    launcher = make_launcher("slurm", "hydra.launcher.total_runs_per_node=1")
    with pytest.raises(SubmissionError):
        launcher.launch([["lr=1"], ["lr=2"], ["lr=3"], ["lr=4"], ["lr=5"]], 0)
    events = written(only_sweep(own_ledger))
    assert [(event.batch, event.job_id) for event in of_type(BatchSubmitted, events)] == [
        ("0-0", "7_0"),
        ("0-1", "7_1"),
    ]
    assert of_type(RunsClosed, events)[0].ranges == [[2, 3], [3, 4], [4, 5]]


def test_more_jobs_than_slurm_holds_are_refused_before_any_is_submitted(make_launcher: Any, fake_slurm: Any) -> None:
    folder = fake_slurm(sbatch=TAKES, scontrol='echo "MaxJobCount             = 4"\n')
    launcher = make_launcher("slurm", "hydra.launcher.total_runs_per_node=1")
    with pytest.raises(SubmissionError, match=r"need 5 jobs, but Slurm holds no more than 4 .*total_runs_per_node"):
        launcher.launch([[f"lr={number}"] for number in range(5)], 0)
    assert not (folder / "taken").exists()


def test_a_refusal_by_a_limit_says_what_helps(make_launcher: Any, fake_slurm: Any) -> None:
    said = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"
    fake_slurm(sbatch=f'echo "sbatch: error: {said}" >&2; exit 1\n')
    with pytest.raises(SubmissionError, match=r"violates accounting/QOS policy .*sacctmgr show qos.*earlier jobs"):
        make_launcher("slurm").launch([["lr=1"]], 0)


def test_several_launches_of_one_sweep(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(sbatch=TAKES)
    launcher = make_launcher("slurm")
    launcher.launch([["lr=1"], ["lr=2"]], 0)
    launcher.launch([["lr=3"]], 2)
    paths = only_sweep(own_ledger)
    assert of_type(RunsPlanned, written(paths, 1))[0].runs == [[2, ["lr=3"]]]
    second = Payload.load(paths.payload(1).read_bytes())
    assert (second.first_run, second.overrides) == (2, [["lr=3"]])


def test_runs_numbered_anew_are_a_sweep_of_their_own(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(sbatch=TAKES, squeue=RUNS)
    launcher = make_launcher("slurm")
    launcher.launch([["lr=1"]], 0)
    launcher.launch([["lr=2"]], 0)
    assert len(LedgerPaths(own_ledger).sweep_roots()) == 2


def test_a_dry_run_shows_all_and_leaves_nothing(
    make_launcher: Any, project: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    monkeypatch.setenv("PATH", str(project))  # no Slurm here
    launcher = make_launcher(
        "slurm",
        "hydra.launcher.do_submit=false",
        "hydra.launcher.total_runs_per_node=2",
        "hydra.launcher.partition=duck",
        "hydra.launcher.gpus_per_node=4",
        "hydra.launcher.mem_gb=16",
    )
    answers = launcher.launch([["lr=1"], ["lr=2", "x=\x1b[31m"], ["lr=3"]], 0)
    assert [answer.return_value for answer in answers] == [None] * 3
    for line in (
        "nothing is submitted",
        "3 runs in 2 jobs to Slurm",
        "Job 0-0: 2 runs",
        "Job 0-1: 1 run",
        "\t#2 : lr=3",
        "x=\\x1b[31m",
        "#SBATCH --partition=duck",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --mem=16GB",
        "#SBATCH --array=0-1%2",
        f"{sys.executable} -u -m submitit.core._submit",
    ):
        assert line in say(), line
    assert sorted(path.name for path in project.iterdir()) == ["conf"]
    assert list(own_ledger.parent.iterdir()) == []


def test_a_dry_run_is_refused_in_a_folder_in_use(make_launcher: Any, fake_slurm: Any, project: Path) -> None:
    fake_slurm(sbatch=TAKES, squeue=RUNS)
    make_launcher("slurm").launch([["lr=1"]], 0)
    with pytest.raises(ConfigError, match=r"uses the folder .*/out: its batch 0-0 is RUNNING in Slurm, as job 4711"):
        make_launcher("slurm", "hydra.launcher.do_submit=false")


def test_the_sweeps_mode(make_launcher: Any, fake_slurm: Any, project: Path) -> None:
    fake_slurm(sbatch=TAKES)
    make_launcher("slurm", "+hydra.sweep.mode=750").launch([["lr=1"]], 0)
    assert (project / "out").stat().st_mode & 0o777 == 0o750
    assert (project / "out" / ".clusterduck").stat().st_mode & 0o777 == 0o700


def test_ten_thousand_runs_take_little_memory(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(sbatch=TAKES)
    runs = [[f"lr={number}", "seed=1", f"model.width={number % 7}"] for number in range(10_000)]
    launcher = make_launcher(
        "slurm", "hydra.launcher.total_runs_per_node=100", "hydra.launcher.parallel_runs_per_node=4"
    )
    tracemalloc.start()
    answers = launcher.launch(runs, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(answers) == 10_000
    assert peak < 100e6
    assert sum(len(event.runs) for event in of_type(RunsPlanned, written(only_sweep(own_ledger)))) == 10_000


def test_what_the_runs_cannot_unpickle_is_refused_before_anything_is_written(
    make_launcher: Any, fake_slurm: Any, project: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that can be imported here, and not by a fresh interpreter with the same sys.path."""
    import types

    module = types.ModuleType("duck_only_here")
    module.__file__ = "somewhere"
    exec("def main(config): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "duck_only_here", module)
    fake_slurm(sbatch=TAKES)
    launcher = make_launcher("slurm", function=module.main)
    with pytest.raises(
        ConfigError,
        match=r"the main function duck_only_here\.main does not unpickle \(ModuleNotFoundError: No module named",
    ):
        launcher.launch([["lr=1"]], 0)
    assert LedgerPaths(own_ledger).sweep_roots() == {}
    assert [path.name for path in (project / "out" / ".clusterduck").iterdir()] == ["owner.0"]


def test_a_module_that_ends_the_fresh_interpreter(
    make_launcher: Any, fake_slurm: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "duck_that_dies.py").write_text(
        "import os, sys\n"
        "if os.environ.get('DIE'):\n    print('dying', file=sys.stderr, flush=True); os._exit(3)\n"
        "def main(config): pass\n"
    )
    monkeypatch.syspath_prepend(str(project))
    import duck_that_dies  # type: ignore[import-not-found]

    monkeypatch.setenv("DIE", "1")
    fake_slurm(sbatch=TAKES)
    with pytest.raises(ConfigError, match="exit code 3: dying"):
        make_launcher("slurm", function=duck_that_dies.main).launch([["lr=1"]], 0)


def test_the_settings_on_record_are_plain_data(make_launcher: Any, fake_slurm: Any, own_ledger: Path) -> None:
    fake_slurm(sbatch=TAKES)
    make_launcher("slurm", "hydra.launcher.resources_config={stagger: {delay: 2}, tmpdir: null}").launch([["lr=1"]], 0)
    (started,) = of_type(LaunchStarted, written(only_sweep(own_ledger)))
    assert started.settings["resources_config"] == {"stagger": {"delay": 2}, "tmpdir": None}
    json.dumps(started.settings)


Sweepers = Callable[..., Any]


@pytest.mark.parametrize(
    "name", ["hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "hydra_ax_sweeper.ax_sweeper.AxSweeper"]
)
def test_a_sweeper_that_needs_values_is_refused(make_launcher: Sweepers, project: Path, name: str) -> None:
    overrides = [f"hydra.sweeper._target_=hydra_plugins.{name}"]
    with pytest.raises(ConfigError, match=rf"{name.rpartition('.')[2]} needs the values .*wait_for_completion=true"):
        make_launcher("local", *overrides)
    assert not (project / "out").exists()
    make_launcher("local", *overrides, "hydra.launcher.wait_for_completion=true")


def test_an_unknown_sweeper_is_warned_about(make_launcher: Sweepers, say: Any) -> None:
    make_launcher("local", "hydra.sweeper._target_=hydra_plugins.mine.MySweeper")
    assert "clusterduck does not know whether the sweeper hydra_plugins.mine.MySweeper needs the values" in say()


def test_a_sweeper_built_on_the_basic_one_passes(make_launcher: Sweepers, say: Any) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.plugins import Plugins

    class DuckSweeper(BasicSweeper):
        pass

    Plugins.instance().register(DuckSweeper)
    make_launcher("local", f"hydra.sweeper._target_={DuckSweeper.__module__}.DuckSweeper")
    assert "does not know" not in say()


def test_a_local_job_that_cannot_be_started_is_said_and_closed(make_launcher: Any, own_ledger: Path) -> None:
    launcher = make_launcher("local", "hydra.launcher.submitit_folder=conf/config.yaml/%j")
    with pytest.raises(
        SubmissionError, match=r"No job could be started on this machine: (NotADirectory|FileExists)Error"
    ):
        launcher.launch([["lr=1"], ["lr=2"]], 0)
    (closed,) = of_type(RunsClosed, written(only_sweep(own_ledger)))
    assert (closed.ranges, closed.state) == ([[0, 2]], "FAILED")


def test_an_interrupted_launch_leaves_nothing_pending(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusterduck.launch import submit

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    fake_slurm(sbatch=TAKES)
    launcher = make_launcher("slurm")
    monkeypatch.setattr(submit, "submit_to_slurm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launcher.launch([["lr=1"]], 0)
    (closed,) = of_type(RunsClosed, written(only_sweep(own_ledger)))
    assert closed.reason == "the launch was interrupted before its job was submitted"


def test_a_plan_that_cannot_be_written_is_said(make_launcher: Any, fake_slurm: Any, project: Path) -> None:
    fake_slurm(sbatch=TAKES)
    launcher = make_launcher("slurm")
    (project / "out" / ".clusterduck" / launcher._sweep._sweep).touch()
    with pytest.raises(
        SubmissionError, match=r"plan of the sweep cannot be written, so nothing was submitted: .*exists"
    ):
        launcher.launch([["lr=1"]], 0)


def test_a_submitting_process_that_is_given_nothing_submits_nothing(project: Path) -> None:
    from clusterduck.launch.local import LocalSubmission

    with LocalSubmission() as submission:
        process = submission._process
    assert process.returncode == 0
    assert sorted(path.name for path in project.iterdir()) == ["conf"]
