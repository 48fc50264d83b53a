"Job files and profiles for larger machines say what the code understands"
import os, re, subprocess

import pytest
import yaml

from forge_nb.train.estimate import TokenizerStub, configure_run
from forge_nb.train.scaling_law import build_on_meta
from forge_nb.core.project import ROOT, load_params
from forge_nb.core.runner import merge_profile
from forge_nb.train.architecture import PretrainConfig, count_parameters

CLUSTERS = sorted((ROOT/"config/clusters").iterdir())


@pytest.mark.parametrize("name, processes, millions", [("gpu", 1, 239), ("gpus", 8, 1160), ("nodes", 16, 1711)])
def test_profiles_of_larger_machines_build_what_they_say(name, processes, millions, monkeypatch):
    params = merge_profile(load_params(ROOT/"params.yaml"), name)
    section = params["pretrain"]
    assert section["num_processes"] == processes
    monkeypatch.setattr("forge_nb.train.estimate.open_tokens", lambda *_: (type("T", (), {"get_shape": lambda self: [0]})(), []))
    run = configure_run(PretrainConfig(**section), TokenizerStub(params["tokenizer"]["vocab_size"]), ROOT)
    assert round(count_parameters(build_on_meta(run.model_init))["total"] / 1e6) == millions
    assert run.config.batch_size % processes == 0 and run.config.batch_size // processes % section["micro_batch_size"] == 0, "every process gets as many rows, in whole parts"
    head = (ROOT/"config/profiles"/f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.search(r"[\d.]+ (million|billion) parameters", head)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda p: p.name)
def test_job_files_are_whole(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"make (?:profile P=)?([a-z]+)", text): assert f"\n{target}:" in (ROOT/"Makefile").read_text(encoding="utf-8") or (ROOT/"config/profiles"/f"{target}.yaml").exists(), target
    assert "dvc repro" in text
    if path.suffix == ".sbatch": subprocess.run(["bash", "-n", path], check=True)
    else: assert all(yaml.safe_load_all(text))


def test_kubernetes_workers_join_what_pod_0_launches():
    _, job = yaml.safe_load_all((ROOT/"config/clusters"/"kubernetes.yaml").read_text(encoding="utf-8"))
    [pod] = job["spec"]["template"]["spec"]["containers"]
    launcher = next(e["value"] for e in pod["env"] if e["name"] == "FORGE_LAUNCHER")
    joined = re.search(r"exec (torchrun .*?)\\?\n?\s*-m forge_nb\.pretrain runs/pretrain\.arguments\.json", pod["args"][0], re.S)[1]
    assert joined.replace('"$JOB_COMPLETION_INDEX"', "0").split() == launcher.split()
    nodes, each = (int(re.search(rf"--{k} (\d+)", launcher)[1]) for k in ("nnodes", "nproc-per-node"))
    assert nodes == job["spec"]["completions"] == job["spec"]["parallelism"] and nodes * each == load_params(ROOT/"config/profiles"/"nodes.yaml")["pretrain"]["num_processes"]


def test_slurm_names_the_head_that_the_launcher_wants():
    launcher = load_params(ROOT/"config/profiles"/"nodes.yaml")["pretrain"]["launcher"]
    variables = set(re.findall(r"\$(\w+)", launcher))
    assert variables and all(f"export {v}" in (ROOT/"config/clusters"/"slurm.sbatch").read_text(encoding="utf-8") for v in variables)
    assert os.path.expandvars(launcher) == launcher or variables <= set(os.environ)
