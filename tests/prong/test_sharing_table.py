"""The table of benchmarks.sharing says what is shared."""

from __future__ import annotations

from benchmarks import sharing


def test_the_busiest_rank_is_listed_beside_the_ideal(capfd):
    arguments = ["--models", "tiny", "--modes", "preconditioned", "--ranks", "2", "--rounds", "1"]
    assert sharing.main(arguments) == 0
    text = capfd.readouterr().out
    assert "python -m benchmarks.sharing --models tiny" in text
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells[:3] == ["tiny", "preconditioned", "2"]
    assert 0.5 <= float(cells[4]) < 1
    assert 1 <= float(cells[6]) <= 1.15
    assert 0 < float(cells[-1]) < 1


def test_the_busiest_rank_stays_within_a_sixth_of_the_ideal():
    for model in ("autoencoder", "vgg"):
        for mode in sharing.MODES:
            _, natural = sharing.natural_of(model, mode, "cholesky")
            for size in (1, 2, 4, 8):
                owners = sharing.assignment(natural.units, natural.settings, size)
                assert max(owners.loads) <= 1.15 * owners.ideal, (model, mode, size)
