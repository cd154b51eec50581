"""A function of the user's own that varies the images: equal on every rank, checked before."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import own_networks
import pytest
import torch

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.core.fingerprints import code_hash, own_code_of
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_card
from pipelines.systems.dvc.stage_code import note_code
from pipelines.training import augmentation, batches, network, training_folder

ROOT = Path(__file__).parents[3]
HEAD = "import random\n\nimport numpy as np\nimport torch\n\n\n"
NOISE = (
    "def vary(images, generator):\n"
    "    noise = torch.randint(0, 9, images.shape, generator=generator)\n"
    "    return (images.long() + noise).clamp(0, 255).to(images.dtype)\n"
)
PICTURES = (
    "import numpy as np\n\n\ndef examples():\n    rng = np.random.default_rng(0)\n"
    "    return [(rng.integers(0, 256, (8, 8), np.uint8), n % 2) for n in range(120)]\n"
)
DEF = "def vary(images, generator):\n    "
_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    with own_networks.own_modules():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures of two classes, prepared."""
    folder = tmp_path_factory.mktemp("augmentation")
    (folder / "own_pictures_to_vary.py").write_text(PICTURES)
    shipped = params_file.load(ROOT / "params.yaml").data
    config = replace(shipped, source="own_pictures_to_vary:examples")
    with own_networks.own_modules():
        prepare(config, root=folder, downloads=folder, out=folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def checkout(tmp_path: Path, data: Path) -> Path:
    """A folder that stands for a checkout with prepared data."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    shutil.copytree(data, tmp_path / "data/prepared")
    return tmp_path


def own(root: Path, text: str) -> TrainConfig:
    """Write a module with a function `vary`; return settings that name it."""
    name = f"own_augmentation_{next(_NUMBERS)}"
    (root / f"{name}.py").write_text(HEAD + text)
    return replace(params_file.load(ROOT / "params.yaml").train, augment_by=f"{name}:vary")


def test_the_example_of_the_documentation(checkout: Path) -> None:
    page = (ROOT / "docs/data.md").read_text("utf-8")
    found = re.search(r"```python\n# augment\.py\n(.*?)```", page, re.DOTALL)
    assert found
    config = own(checkout, found[1])
    augmentation.try_out(config, checkout / "data/prepared")
    vary = augmentation.augmentation(config, checkout)
    assert vary is not None
    for dtype, top in ((torch.uint8, 255), (torch.uint16, 65535)):
        given = (torch.rand(16, 3, 20, 20) * top).to(dtype)
        kept = given.clone()
        varied = vary(given, torch.Generator().manual_seed(3))
        assert torch.equal(given, kept)
        assert (varied.dtype, varied.shape) == (dtype, given.shape)
        assert (varied.float() - given.float()).abs().mean() > 0.02 * top
        assert abs(varied.float().mean() - given.float().mean()) < 0.1 * top
        again = vary(given, torch.Generator().manual_seed(3))
        assert torch.equal(varied, again)
        other = vary(given, torch.Generator().manual_seed(4))
        assert not torch.equal(varied, other)


def test_the_batches_are_those_of_one_rank_whatever_their_number(checkout: Path) -> None:
    vary = augmentation.augmentation(own(checkout, NOISE), checkout)
    images = torch.arange(60 * 16, dtype=torch.uint8).reshape(60, 1, 4, 4)
    labels = torch.arange(60)

    def epoch(rank: int, ranks: int, first: int = 0) -> list[torch.Tensor]:
        return [
            part
            for part, _, _ in batches.epoch(
                images,
                labels,
                batch=7,
                augment=2,
                flip=True,
                seed=0,
                number=1,
                rank=rank,
                ranks=ranks,
                first=first,
                vary=vary,
            )
        ]

    alone = epoch(0, 1)
    together = [torch.cat(parts) for parts in zip(*(epoch(r, 3) for r in range(3)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[5:], epoch(0, 1, first=5), strict=True))


def test_16_bit_images_are_shifted_and_mirrored_as_others_are() -> None:
    images = torch.randint(0, 256, (8, 2, 6, 6), dtype=torch.uint8)
    found = [
        batches.shifted(given, 2, True, torch.Generator().manual_seed(0))
        for given in (images, images.to(torch.uint16))
    ]
    assert found[1].dtype == torch.uint16
    assert torch.equal(found[0].int(), found[1].int())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NOISE, ""),
        (f"{DEF}return images\n", ""),
        (f"{DEF}return images.float()\n", r"returned float32 \[\d+, 1, 8"),
        (f"{DEF}return images[1:]\n", r"returned uint8 \[\d+, .*needed: "),
        (f"{DEF}return None\n", r"returned NoneType; a tensor is needed"),
        ("def vary(images):\n    return images\n", r"TypeError: vary\(\) takes 1 positional"),
        (f"{DEF}return images @ 3\n", r"own_.*, line 8: TypeError"),
        (NOISE.replace("generator=generator", ""), r"everything random must come from the gener"),
        (f"{DEF}return images + np.random.randint(9)\n", r"two results"),
        (f"{DEF}return images + random.randint(0, 99)\n", r"two results"),
        (f"{DEF}torch.rand(3)\n    return images\n", r"global random"),
    ],
)  # fmt: skip
def test_it_is_tried_before_the_training(checkout: Path, text: str, said: str) -> None:
    config = own(checkout, text)
    before = torch.get_rng_state()
    if not said:
        augmentation.try_out(config, checkout / "data/prepared")
    else:
        with pytest.raises(UserError, match=rf"^train\.augment_by = '.*: .*{said}") as caught:
            augmentation.try_out(config, checkout / "data/prepared")
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_its_code_is_part_of_every_name_and_of_no_network(checkout: Path) -> None:
    shipped = params_file.load(ROOT / "params.yaml")
    params = replace(shipped, train=own(checkout, NOISE))
    card = load_card(checkout / "data/prepared")
    path = checkout / f"{params.train.augment_by.split(':')[0]}.py"

    def names() -> list[str]:
        (checkout / "params.yaml").write_text(f"train:\n  augment_by: {params.train.augment_by}\n")
        note_code(checkout)
        return [
            code_hash(checkout, own_code_of(params)),
            training_folder.name(params.train, card.data_hash, checkout),
            network.describe(params.train, card, checkout / "data").augmentation,
            read_json(checkout / "data/code/train.json")["train.augment_by"],
        ]

    before = names()
    spec = network.describe(params.train, card, checkout / "data")
    network.save(checkout / "trained", spec, network.build(spec, checkout).state_dict())
    path.write_text(f"{HEAD}# changed\n{NOISE}")
    assert [a == b for a, b in zip(names(), before, strict=True)] == [False] * 4
    assert network.load(checkout / "trained")[0] == spec  # it is no part of the network
