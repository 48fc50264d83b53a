"The record of versions of data/, in a project of git and DVC"
import os, shutil, subprocess
from pathlib import Path

from dvc.repo import Repo
from forge_nb.core.project import read_csv
from forge_nb.data.versions import list_data_versions, measure_changes, read_cached_files, record_versions

DATES = ("2026-03-01T12:00:00", "2026-03-08T12:00:00")


def git(root, *command, **env):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command], cwd=root, check=True, capture_output=True, env=os.environ | env)


def write(root, price):
    (root/"data"/"facts").mkdir(parents=True, exist_ok=True)
    (root/"data"/"facts"/"prices.csv").write_text(f"name,price\nbolt,{price} EUR\nnut,1 EUR\n", encoding="utf-8")
    (root/"data"/"page.txt").write_text("Bolts hold.\n", encoding="utf-8")
    Repo(root).add(str(root/"data"))


def read(root):
    def text(digest):
        path = Path(Repo(root).cache.local.oid_to_path(digest))
        return path.read_text(encoding="utf-8") if path.exists() else None
    return lambda digest: read_cached_files(root, digest), text


def test_versions_are_read_from_git_and_compared_from_the_cache(tmp_path):
    git(tmp_path, "init", "-q")
    Repo.init(tmp_path)
    for price, day in zip((3, 4), DATES):
        write(tmp_path, price)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "data", GIT_COMMITTER_DATE=day)
    versions, path = list_data_versions(tmp_path), tmp_path/"results"/"versions.csv"
    assert [day for _, day in versions] == [day[:10] for day in DATES]
    rows = record_versions(path, versions, *read(tmp_path))
    assert [(r["source"], r["before"], r["kept"]) for r in rows] == [("", "", ""), ("facts/prices.csv", "2", "1"), (".", "1", "1")]
    assert measure_changes(rows)["facts/prices.csv"]["percent"] == 214.3  # half of the rows in seven days
    write(tmp_path, 5)  # not committed: the version of the working tree
    assert len(list_data_versions(tmp_path)) == 3 and len(list_data_versions(tmp_path)[2][0]) > 30
    shutil.rmtree(tmp_path/".dvc"/"cache"/"files")
    again = record_versions(path, list_data_versions(tmp_path), *read(tmp_path))
    assert again[:3] == rows and again[3]["source"] == "" and read_csv(path) == again  # known stays known, the new one is unknown


def test_no_data_makes_no_record(tmp_path):
    assert list_data_versions(tmp_path) == []
    assert record_versions(tmp_path/"versions.csv", [], None, None) == [] and not (tmp_path/"versions.csv").exists()
