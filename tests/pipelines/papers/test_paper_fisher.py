"""Fig. 2: blocks and condition numbers against an independent exact Fisher matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prong
from pipelines.paper import fisher_experiment as fisher
from pipelines.paper.experiment import Curve, CurveMark, TrainingTask
from pipelines.paper.fisher_experiment import FISHER
from pipelines.paper.networks import tanh_mlp
from pipelines.paper.paper_images import SplitImages
from prong.layers.base import Whitened

WIDTHS = (4, 3, 3, 3, 2)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return tanh_mlp(WIDTHS, False).double()


def _inputs(count: int = 20) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.rand(count, WIDTHS[0], generator=drawn, dtype=torch.float64)


def _independent(model: nn.Module, inputs: Tensor, names: list[str]) -> Tensor:
    """Eq. 3 as it is written: the expectation over labels of ∇log p ∇log pᵀ, one by one."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    total = torch.zeros(1, dtype=torch.float64)
    for x in inputs:
        log = model(x.unsqueeze(0)).log_softmax(1)[0]
        for value in log:
            gradients = torch.autograd.grad(value, chosen, retain_graph=True)
            flat = torch.cat([g.flatten() for g in gradients])
            total = total + value.exp().detach() * torch.outer(flat, flat)
    return total / len(inputs)


def _whitened() -> tuple[nn.Module, nn.Module]:
    """A network and the same whitened, with the same function."""
    plain = _network()
    model = prong.whiten(_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = prong.Reparametrizer(model, optimizer, damping=1e-3, mode="fold")
    natural.initialize([_inputs(200)], init="preserve")
    return plain, model


@pytest.mark.slow
def test_the_blocks_are_those_of_an_independent_exact_fisher_matrix() -> None:
    model, inputs = _network(), _inputs()
    found = fisher.middle_fisher(model, inputs)
    names = fisher.middle(model)
    assert names == ["2.weight", "2.bias", "4.weight", "4.bias"]
    first, second = (_independent(model, inputs, names[at : at + 2]) for at in (0, 2))
    assert torch.allclose(found[:12, :12], first, atol=1e-12)
    assert torch.allclose(found[12:, 12:], second, atol=1e-12)
    assert found[:12, 12:].abs().max() == 0


def test_prongs_blocks_are_with_respect_to_omega() -> None:
    plain, model = _whitened()
    inputs = _inputs()
    assert torch.allclose(plain(inputs), model(inputs), atol=1e-10)
    found = fisher.middle_fisher(model, inputs)
    layers = [m for m in model.modules() if isinstance(m, Whitened)][1:-1]
    for number, layer in enumerate(layers):
        # θ of Ω: W = V U, b = d − V U c, so that F_Ω = Jᵀ F_θ J.
        whitener, mean = layer.get_buffer("whitener")[0], layer.get_buffer("mean")[0]

        def theta(omega: Tensor, u: Tensor = whitener, c: Tensor = mean) -> Tensor:
            w = omega[:9].view(3, 3) @ u
            return torch.cat([w.flatten(), omega[9:] - w @ c])

        omega = torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])
        jacobian = torch.autograd.functional.jacobian(theta, omega)
        names = [f"{2 * number + 2}.weight", f"{2 * number + 2}.bias"]
        expected = jacobian.T @ _independent(plain, inputs, names) @ jacobian
        block = found[12 * number : 12 * (number + 1), 12 * number : 12 * (number + 1)]
        assert torch.allclose(block, expected, rtol=1e-8, atol=1e-10)


def test_the_condition_number_leaves_out_what_has_no_curvature() -> None:
    values = torch.tensor([4.0, 2.0, 1e-3, 4e-13, 0.0], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    found, rank = fisher.condition(turn @ values.diag() @ turn.T)
    assert rank == 3
    assert found == pytest.approx(4000, rel=1e-6)


def test_batch_normalisation_begins_as_the_same_function() -> None:
    torch.manual_seed(0)
    normalised = tanh_mlp(WIDTHS, True).double()
    inputs = _inputs(50)
    fisher._begin(normalised, inputs)
    assert normalised.training
    normalised.eval()
    plain = _network()
    assert torch.allclose(normalised(inputs), plain(inputs), atol=1e-10)
    own, its = (fisher.condition(fisher.middle_fisher(m, inputs)) for m in (normalised, plain))
    assert own[1] == its[1]
    assert own[0] == pytest.approx(its[0], rel=1e-5)


def test_trials_are_judged_by_how_near_they_come_to_the_same_training_error() -> None:
    scale = FISHER.scales["small"]
    wanted = float(scale.options["loss"])

    def score(loss: float) -> float:
        return FISHER.score(scale, Curve((CurveMark(0, 0, 0.0, 0.0, {"loss": loss}),)))

    assert score(wanted) == 0
    assert score(wanted / 2) == pytest.approx(score(wanted * 2))
    assert score(wanted * 2) < score(wanted * 3)


def _examples() -> SplitImages:
    drawn = torch.Generator().manual_seed(0)
    images = torch.rand(300, 1, 10, 10, generator=drawn)
    labels = torch.randint(10, (300,), generator=drawn)
    return SplitImages(images, labels, images[:50], labels[:50])


def test_a_training_measures_before_and_after_the_first_reparametrisation() -> None:
    scale = replace(
        FISHER.scales["small"],
        examples=64 * 4,
        marks=2,
        options={"fisher_images": 60, "loss": 0.2},
    )
    curves = {}
    for key in ("prong", "bn"):
        study = scale.studies[key]
        values = {**study.fixed, "lr": 0.001}
        curves[key] = FISHER.train(scale, _examples(), TrainingTask(study.method, values, 0, True))
    before = curves["prong"].before["condition"]
    # The same initial conditioning.
    assert before == pytest.approx(curves["bn"].marks[0].figures["condition"], rel=1e-3)
    assert curves["prong"].marks[0].figures["condition"] < 0.05 * before
    trial = FISHER.train(scale, _examples(), TrainingTask("sgd", values, 0, False))
    assert "condition" not in trial.last.figures
