from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training import batches


def _images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 2, 5, 5), generator=generator, dtype=torch.uint8)


@given(st.integers(2, 40), st.integers(2, 16), st.integers(1, 4), st.integers(0, 3))
def test_the_ranks_shares_make_up_the_same_global_batches(
    count: int, batch: int, ranks: int, number: int
) -> None:
    images, labels = _images(count), torch.arange(count)

    def share(rank: int, of: int) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        return list(
            batches.epoch(
                images, labels, batch=batch, augment=1, flip=True, seed=3, number=number,
                rank=rank, ranks=of,
            )
        )  # fmt: skip

    alone = share(0, 1)
    parts = [share(rank, ranks) for rank in range(ranks)]
    assert len(alone) == batches.steps_per_epoch(count, batch)
    for step, (whole, answers, size) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), whole)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), answers)
        assert all(part[step][2] == size == len(whole) for part in parts)
    seen = torch.cat([answers for _, answers, _ in alone])
    assert len(seen.unique()) == len(seen), "an image comes once an epoch"


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, number: int) -> list[int]:
        labels = torch.arange(64)
        run = batches.epoch(
            _images(64), labels, batch=64, augment=0, flip=False, seed=seed, number=number
        )
        return [int(x) for _, answers, _ in run for x in answers]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert order(0, 0) == orders[0]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@given(st.integers(0, 4), st.booleans())
def test_a_shift_moves_whole_images_and_repeats_edges(pixels: int, flip: bool) -> None:
    images = _images(12)
    moved = batches.shifted(images, pixels, flip, torch.Generator().manual_seed(1))
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    for before, after in zip(images, moved, strict=True):
        candidates = []
        for mirrored in [before, before.flip(2)] if flip else [before]:
            rows = torch.arange(5)
            for dy in range(-pixels, pixels + 1):
                for dx in range(-pixels, pixels + 1):
                    y, x = (rows + dy).clamp(0, 4), (rows + dx).clamp(0, 4)
                    candidates.append(mirrored[:, y][:, :, x])
        assert any(torch.equal(after, candidate) for candidate in candidates)


def test_a_shift_of_nothing_changes_nothing() -> None:
    images = _images(4)
    assert torch.equal(batches.shifted(images, 0, False, torch.Generator()), images)
