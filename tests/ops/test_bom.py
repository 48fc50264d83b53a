"Bills of materials: what is in a model, and licences that do not go together with its use"
import json, shutil
from datetime import date
from types import SimpleNamespace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from copies import OFFLINE
from forge_nb.core.project import Invalid, ROOT, hash_weights, read_json, write_json, write_jsonl
from forge_nb.core.settings import load_settings
from forge_nb.data.documents import find_folder_licence
from forge_nb.ops import bom as bom_page
from forge_nb.ops.bom import check_bom, collect_bom, list_packages, parse_pins, write_bom
from forge_nb.ops.formats import FORMATS
from forge_nb.ops.licences import LicenceTable, Rights, list_licence_reasons

LOCK = "fastcore==9.9.9\nrich==1.0\n"
SIGNED = dict(decided_by="J. Doe", decided_on=date(2026, 11, 30), because="contract of May")


def validate(text): return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def write_use(root, commercial=True, distributed=True, decisions=()):
    lines = [f"use: {{commercial: {str(commercial).lower()}, distributed: {str(distributed).lower()}}}", "decisions:" if decisions else "decisions: []"]
    lines += [f"- {{about: {about}, licence: {licence}, decided_by: J. Doe, decided_on: 2026-11-30, because: contract of May}}" for about, licence in decisions]
    (root/"company"/"licences.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_documents(root, **licences):
    "A document for each folder, with its licence"
    rows = [dict(id=f"{n:016}", source=f"{folder}/a.txt", kind="docs", licence=licence, text=f"About {folder}.") for n, (folder, licence) in enumerate(licences.items())]
    write_jsonl(root/"artifacts"/"curate"/"documents"/"train.jsonl", rows)


class Package(SimpleNamespace):
    "An installed package that says its licence by a field"
    files = ()


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A made project with two checkpoints, one of which had nothing to do"
    for name in ("company/card.yaml", "config/licences.yaml"): (tmp_path/name).parent.mkdir(exist_ok=True), shutil.copy(ROOT/name, tmp_path/name)
    write_use(tmp_path)
    write_documents(tmp_path, docs="MIT", wiki="CC-BY-4.0")
    (tmp_path/"data"/"facts").mkdir(parents=True)
    (tmp_path/"data"/"facts"/"parts.csv").write_text("name,price\nbolt,3\n", encoding="utf-8")
    (tmp_path/"data"/"LICENSE").write_text("SPDX-License-Identifier: MIT\n", encoding="utf-8")
    entries = dict(rl=dict(folder="rl/model", ships=True), sft=dict(folder="sft/model"), distill=dict(folder="distill/model"))
    write_json(tmp_path/"config"/"checkpoints.yaml", dict(checkpoints=entries))
    for name in ("rl", "sft"):
        write_json(folder := tmp_path/"artifacts"/name/"model"/"config.json", dict(architectures=["Qwen3ForCausalLM"]))
        folder.with_name("model.safetensors").write_bytes(name.encode())
    write_json(tmp_path/"artifacts"/"distill"/"model"/"skipped.json", dict(skipped="no rows"))
    write_json(tmp_path/"artifacts"/"pretrain"/"metrics.json", {})
    (tmp_path/"artifacts"/"evaluate").mkdir()
    (tmp_path/"artifacts"/"evaluate"/"intervals.csv").write_text("checkpoint,metric,slice,n,mean,low,high\nrl,kpi,all,320,0.77,0.7,0.8\n", encoding="utf-8")
    (tmp_path/"requirements.lock").write_text(LOCK, encoding="utf-8")
    (tmp_path/"params.yaml").write_text("export: {formats: [safetensors]}\n", encoding="utf-8")
    packages = dict(fastcore=Package(version="9.9.9", metadata=Metadata({"License-Expression": "Apache-2.0"})), rich=Package(version="1.0", metadata=Metadata({"License": "MIT"})))
    monkeypatch.setattr(bom_page, "distribution", packages.__getitem__)
    find_folder_licence.cache_clear()
    return tmp_path


class Metadata(dict):
    "Fields of a package"
    def get_all(self, name): return None


# ---- the list

def test_packages_of_the_extra_are_listed_where_a_form_is_written_by_them(project):
    (project/"requirements-edge.lock").write_text("rich==1.0\n", encoding="utf-8")
    (project/"requirements.lock").write_text("fastcore==9.9.9\n", encoding="utf-8")
    def names(): return [part["name"] for part in bom_page.collect_bom(project)["components"] if part["type"] == "library"]
    assert names() == ["fastcore"]
    (project/"params.yaml").write_text("export: {formats: [safetensors, pte]}\n", encoding="utf-8")
    assert names() == ["fastcore", "rich"] and bom_page.EDGE_FORMS == {name for name, form in FORMATS.items() if form.modules}


def test_the_same_run_gives_the_same_bytes_and_a_changed_document_others(project):
    answer = write_bom(project)
    text = (project/answer.file).read_text(encoding="utf-8")
    assert validate(text) is None and "timestamp" not in text
    assert (answer.packages, answer.models, answer.sources, answer.documents, answer.reasons) == (2, 2, 3, 3, [])
    assert write_bom(project) == answer and (project/answer.file).read_text(encoding="utf-8") == text
    write_documents(project, docs="MIT", wiki="CC-BY-SA-4.0")
    changed = write_bom(project)
    assert changed.sha256 != answer.sha256 and read_json(project/answer.file)["serialNumber"] != json.loads(text)["serialNumber"]


def test_what_ships_is_what_the_list_is_about(project):
    bom = collect_bom(project)
    model, parts = bom["metadata"]["component"], {part["bom-ref"]: part for part in bom["components"]}
    assert model["hashes"] == [dict(alg="SHA-256", content=hash_weights(project/"artifacts"/"rl"/"model"))]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [dict(type="kpi", value="0.77", slice="all", confidenceInterval=dict(lowerBound="0.7", upperBound="0.8"))]
    datasets = [dataset["ref"] for dataset in model["modelCard"]["modelParameters"]["datasets"]]
    assert datasets == ["data/docs@MIT", "data/wiki@CC-BY-4.0", "data/facts@MIT"] and set(datasets) < set(parts)
    assert "model/sft" in parts and "model/distill" not in parts, "a stage that had nothing to do made no model"
    assert set(bom["dependencies"][0]["dependsOn"]) == {*datasets, "pkg:pypi/fastcore@9.9.9", "pkg:pypi/rich@1.0"}


def test_a_base_is_an_ancestor_with_its_licence(project):
    base = dict(base="smollm2", model="HuggingFaceTB/SmolLM2-135M-Instruct", licence="apache-2.0", weights="7ef915c9" * 8)
    write_json(project/"artifacts"/"pretrain"/"metrics.json", dict(base=base))
    [ancestor] = collect_bom(project)["metadata"]["component"]["pedigree"]["ancestors"]
    assert (ancestor["name"], ancestor["licenses"]) == (base["model"], [dict(license=dict(id="Apache-2.0"))])
    assert write_bom(project).models == 3


def test_a_decision_stands_beside_the_licence_on_record(project):
    write_documents(project, wiki="CC-BY-NC-4.0")
    write_use(project, decisions=[("data/wiki", "LicenseRef-Contract")])
    answer = write_bom(project)
    [wiki] = [part for part in read_json(project/answer.file)["components"] if part["name"] == "data/wiki"]
    notes = {p["name"]: p["value"] for p in wiki["properties"]}
    assert wiki["licenses"] == [dict(license=dict(name="LicenseRef-Contract"))] and answer.reasons == []
    assert (notes["forge:licence_on_record"], notes["forge:decided_by"], notes["forge:decided_on"], notes["forge:because"]) == ("CC-BY-NC-4.0", "J. Doe", "2026-11-30", "contract of May")


def test_a_misspelt_field_is_refused(project):
    bom = collect_bom(project)
    bom["components"][0]["bom_ref"] = "x"
    with pytest.raises(Invalid, match="no CycloneDX 1.6"): check_bom(json.dumps(bom))


def test_a_package_without_a_known_licence_stops_until_somebody_decides(project, monkeypatch):
    table = load_settings(project/"config"/"licences.yaml", LicenceTable)
    use, packages = dict(commercial=True, distributed=True), "odd==1.0\n"
    monkeypatch.setattr(bom_page, "distribution", {"odd": Package(version="1.0", metadata=Metadata({"License": "ask us"}))}.__getitem__)
    with pytest.raises(Invalid, match="nothing says the licence of odd 1.0; add a line to `packages`"): list_packages(packages, table, Rights(use=use))
    decided = Rights(use=use, decisions=[dict(about="package/odd", licence="MIT") | SIGNED])
    assert list_packages(packages, table, decided)[0]["licenses"] == [dict(license=dict(id="MIT"))]


def test_every_package_of_the_lock_has_a_licence():
    table = load_settings(ROOT/"config"/"licences.yaml", LicenceTable)
    lock = (ROOT/"requirements.lock").read_text(encoding="utf-8")
    found = list_packages(lock, table, load_settings(ROOT/"company"/"licences.yaml", Rights))
    assert len(found) == len(parse_pins(lock)) > 200
    known = {part["name"]: part["licenses"] for part in found}
    assert known["transformers"] == [dict(license=dict(id="Apache-2.0"))] and known["pygit2"] == [dict(expression="GPL-2.0-only WITH GCC-exception-2.0")]
    assert set(table.packages) <= set(known), "a line of config/licences.yaml is about a package that the lock does not have"


# ---- what stands against the use

@pytest.mark.parametrize("licence, words", [
    ("CC-BY-NC-4.0", "CC-BY-NC-4.0 allows no commercial use, and company/licences.yaml says `use.commercial: true`"),
    ("CC-BY-SA-4.0", "CC-BY-SA-4.0 asks that what is made from it carry the same licence, and company/card.yaml says `licence: apache-2.0`"),
    ("CC-BY-ND-4.0", "CC-BY-ND-4.0 allows nobody to pass on what is made from it, and company/licences.yaml says `use.distributed: true`"),
    ("Beerware", "config/licences.yaml knows no licence 'Beerware'; say in company/licences.yaml, `decisions`"),
    ("", "no licence is known; say in company/licences.yaml, `decisions`"),
    ("see (file", "the licence 'see (file' is no SPDX expression")])
def test_what_does_not_go_together_is_a_sentence_that_names_both(project, licence, words):
    write_documents(project, docs="MIT", wiki=licence)
    [reason] = list_licence_reasons(project)
    assert reason.startswith(f"data/wiki (1 documents): {words}") and "\n" not in reason
    write_use(project, decisions=[("data/wiki", "LicenseRef-Own")])
    assert list_licence_reasons(project) == []


def test_the_use_decides(project):
    write_documents(project, a="CC-BY-NC-4.0", b="CC-BY-SA-4.0", c="CC-BY-ND-4.0")
    for commercial, distributed, named in [(True, True, "abc"), (True, False, "a"), (False, True, "bc"), (False, False, "")]:
        write_use(project, commercial, distributed)
        assert [reason.split(" (")[0] for reason in list_licence_reasons(project)] == [f"data/{name}" for name in named]


def test_a_base_is_held_against_the_use_as_well(project):
    write_json(project/"artifacts"/"pretrain"/"metrics.json", dict(base=dict(base="mine", model="owner/mine", licence="cc-by-nc-4.0", weights="7e" * 32)))
    [reason] = list_licence_reasons(project)
    assert reason.startswith("base/mine (owner/mine): CC-BY-NC-4.0 allows no commercial use")


def test_a_decision_for_another_licence_is_held_against_the_use_too(project):
    write_documents(project, wiki="")
    write_use(project, decisions=[("data/wiki", "CC-BY-NC-4.0")])
    assert "CC-BY-NC-4.0 allows no commercial use" in list_licence_reasons(project)[0]


@pytest.mark.parametrize("field", ["about", "licence", "decided_by", "decided_on", "because"])
def test_a_decision_without_a_field_is_none(project, field):
    write_use(project, decisions=[("data/wiki", "LicenseRef-Own")])
    path = project/"company"/"licences.yaml"
    parts = path.read_text(encoding="utf-8").split("- {")
    kept = ", ".join(pair for pair in parts[1].strip().rstrip("}").split(", ") if not pair.startswith(f"{field}:"))
    path.write_text(f"{parts[0]}- {{{kept}}}\n", encoding="utf-8")
    with pytest.raises(Invalid, match=f"licences.yaml: field `decisions.0.{field}` is missing; add it"): list_licence_reasons(project)


def test_without_records_nothing_passes(project):
    shutil.rmtree(project/"artifacts"/"curate")
    with pytest.raises(Invalid, match="`dvc repro curate` makes it"): list_licence_reasons(project)


@pytest.mark.skipif(not OFFLINE, reason="this system cuts no network")
def test_the_schema_needs_no_network(tmp_path):
    import subprocess, sys
    code = "import json; from forge_nb.ops.bom import check_bom, number_bom; check_bom(json.dumps(number_bom(dict(bomFormat='CycloneDX', specVersion='1.6', version=1)))); print('valid')"
    done = subprocess.run([*OFFLINE.split(), sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip() == "valid", done.stderr
