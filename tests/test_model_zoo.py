"""The model zoo: each row of the page is a config, and has what the code says of it."""

import json
import re

import pytest
import torch

from detectron2_ddetr import model_zoo
from detectron2_ddetr.checkpoint.files import load_checkpoint_file
from detectron2_ddetr.checkpoint.package_files import package_file
from detectron2_ddetr.engine import run
from detectron2_ddetr.errors import MissingFileError

from .conftest import DATA, ROOT

PAGE = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
QUICK_START = "quick_start.yaml"


def rows():
    """{name: ({column: cell}, config)} of the tables of models."""
    found, columns = {}, []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| Name"):
            columns = cells
        elif matched := re.match(r"\| \[(\w+)\]\((configs/[\w/]+\.yaml)\) \|", line):
            assert len(cells) == len(columns), line
            found[matched[1]] = dict(zip(columns, cells)), matched[2]
    return found


def readme_numbers():
    """{config: what the authors' repository publishes} of the README's table."""
    pattern = r"^\| \[[^]]*\]\((configs/[\w/]+\.yaml)\) \|[ \d.]*\| ([\d.]+) \| ([\d.]*) ?\|$"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {m[0]: (m[1], m[2]) for m in re.findall(pattern, text, flags=re.MULTILINE)}


def test_each_row_has_its_config_and_each_config_its_row():
    """But for what others are based on, and LazyConfigs, which are the same models."""
    configs = {config for _, config in rows().values()}
    shipped = {f"configs/{name}" for name in model_zoo.list_config_files() if "lazy" not in name}
    assert configs == {name for name in shipped if "/Base-" not in name}
    for name, (_, config) in rows().items():
        path = ROOT / config
        assert path.stem == name and path.samefile(model_zoo.get_config_file(f"{name}.yaml"))


def test_published_numbers_are_those_of_the_readme():
    numbers = {
        c: (r["published box AP"], r["box AP here"]) for r, c in rows().values() if len(r) > 6
    }
    assert len(numbers) == 5 and numbers == readme_numbers()


def test_downloads_are_what_the_code_loads():
    for name, (row, config) in rows().items():
        links = re.findall(r"\[file\]\(([^)]*)\)", row["Download"])
        if not links:
            with pytest.raises(MissingFileError, match="MODEL_ZOO.md.*MODEL.WEIGHTS"):
                model_zoo.get_checkpoint_url(f"{name}.yaml")
            continue
        address = model_zoo.get_checkpoint_url(config.removeprefix("configs/"))
        assert address == links[0].replace("detectron2_ddetr/", "package://detectron2_ddetr/", 1)
        assert model_zoo.get_config(f"{name}.yaml", trained=True).MODEL.WEIGHTS == address


def test_links_into_the_repository_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]*)", PAGE) if "://" not in link]
    assert len(links) > 8 and [link for link in links if not (ROOT / link).exists()] == []


def test_each_download_has_a_source_and_a_licence():
    sources = PAGE.split("## Sources and licences")[1]
    for row, _ in rows().values():
        letters = re.findall(r"\)? \((\w)\)", row["Download"])
        assert letters
        for letter in letters:
            (source,) = re.findall(rf"^\| \({letter}\) \| (.*) \| (.*) \|$", sources, re.MULTILINE)
            assert all(source)


def test_the_page_is_run_as_it_stands():
    names = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, names)
    assert names["cfg"].MODEL.DETR.NUM_QUERIES == 300
    assert names["model"].training and names["model"].device.type == "cpu"


def test_random_weights_unless_trained_ones_are_asked_for():
    torch.manual_seed(0)
    trained, fresh = (model_zoo.get(QUICK_START, trained=t, device="cpu") for t in (True, False))
    path = package_file(model_zoo.get_checkpoint_url(QUICK_START))
    state = load_checkpoint_file(path)["model"]
    for key, value in trained.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key
    assert not torch.equal(fresh.head.transformer.level_embed, trained.head.transformer.level_embed)
    assert model_zoo.get("deformable_detr_R_50_50ep.yaml", device="meta").device.type == "meta"


@pytest.mark.skipif(not DATA.exists(), reason="needs datasets/bccd")
def test_our_model_has_the_ap_of_the_page(tmp_path):
    """As `make demo-pretrained` evaluates it."""
    row, _ = rows()["quick_start"]
    words = ["--config-file", model_zoo.get_config_file(QUICK_START), "--eval-only", "--weights"]
    words += [model_zoo.get_checkpoint_url(QUICK_START), "OUTPUT_DIR", str(tmp_path)]
    results = run.main(run.run_argument_parser().parse_args(words))["bbox"]
    for key, column in (("AP", "box AP"), ("AP50", "AP50"), ("AP75", "AP75")):
        assert results[key] == pytest.approx(float(row[f"{column} here"]), abs=0.2)


def test_our_model_says_where_it_comes_from():
    path = package_file(model_zoo.get_checkpoint_url(QUICK_START))
    checkpoint = load_checkpoint_file(path)
    assert checkpoint["licence"] == "Apache-2.0" and "BCCD (MIT)" in checkpoint["source"]["data"]
    assert checkpoint["class_names"] == ["RBC", "WBC", "Platelets"]
    log, metrics = (
        (ROOT / "detectron2_ddetr/model_zoo/weights" / f"quick_start_{name}").read_text()
        for name in ("log.txt", "metrics.json")
    )
    assert "num_gpus=2" in log and "/tmp" not in log and "/root" not in log
    assert json.loads(metrics.splitlines()[-1])["bbox/AP"] == pytest.approx(58.63, abs=0.005)
