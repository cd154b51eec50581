"""`prong.check` and `whiten` where layers have adapters, such as those of LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from checked_network import MODES, Net, trained
from exact import EXACT, reparametrizer
from torch import nn

import prong


def adapted(model, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


@pytest.mark.filterwarnings("ignore:whitened .*Less than half:UserWarning")
def test_layers_inside_adapters_of_peft_stay_plain():
    model = prong.whiten(adapted(Net().double()))
    status = {each.name: each for each in prong.coverage(model)}
    inside = {name: each for name, each in status.items() if ".a." in name or ".b." in name}
    assert len(inside) == 6
    assert not any(each.whitened for each in inside.values())
    assert all("adapter of peft" in each.reason for each in inside.values())
    assert [name for name, each in status.items() if each.whitened] == ["base_model.model.c"]
    x = torch.randn(8, 5).double()
    natural = reparametrizer(model, torch.optim.SGD(model.parameters(), lr=0.1), **EXACT)
    natural.initialize([x], "preserve")
    before = model.eval()(x)
    merged = copy.deepcopy(model).merge_and_unload()
    assert (merged(x) - before).abs().max() < 1e-12
    with pytest.raises(ValueError, match="no layer can be whitened"):
        prong.whiten(adapted(nn.Sequential(Net())), include="*lora_A*")


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_around_a_whitened_layer_is_named_if_merging_would_be_wrong(mode):
    x = torch.randn(8, 5, dtype=torch.float64)
    model, _ = trained(Net().double(), x, mode, 3)
    wrapped = adapted(model).eval()
    before = wrapped(x).detach()
    result = prong.check(wrapped, x)
    if mode == "preconditioned":
        # peft froze the biases, which took c out: W is the parameter, and merging adds to W.
        assert result.ok
        merged = copy.deepcopy(wrapped).merge_and_unload()
        assert (merged(x) - before).abs().max() < 1e-12
        return
    assert [each.name.split(".")[-2] for each in result.layers] == ["a", "b"]
    assert all("when it merges" in each.reason for each in result.layers)
    # As the message says: fold first.
    merged = prong.fold(wrapped).merge_and_unload()
    assert (merged(x) - before).abs().max() < 1e-12
    wrong = copy.deepcopy(wrapped).merge_and_unload()
    assert (wrong(x) - before).abs().max() > 1e-3


def test_an_adapter_around_a_frozen_layer_that_never_moved_merges_well():
    x = torch.randn(8, 5, dtype=torch.float64)
    model = adapted(prong.whiten(Net().double())).eval()
    assert prong.check(model, x).ok
    before = model(x).detach()
    assert (model.merge_and_unload()(x) - before).abs().max() < 1e-12


def test_an_adapter_that_reads_the_weight_is_named():
    x = torch.randn(8, 5, dtype=torch.float64)
    model = adapted(prong.whiten(Net().double()), use_dora=True)
    result = prong.check(model, x)
    assert result.layers
    assert all("reads its weight" in each.reason for each in result.layers)
