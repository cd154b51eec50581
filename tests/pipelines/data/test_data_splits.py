from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.splits import Shares, assign, position, select

SHARES = Shares(validation=0.05, gate=0.10, test=0.15)
CONTENT = st.integers(0, 10**6).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest())
SHARE = st.floats(0.01, 0.3)


def content(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_the_shares_are_met() -> None:
    n = 20_000
    found = Counter(assign(0, content(number), SHARES) for number in range(n))
    wanted = {"train": 0.70, "validation": 0.05, "gate": 0.10, "test": 0.15}
    for name, share in wanted.items():
        assert abs(found[name] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_beside_an_official_test_set_the_shares_are_of_the_other_images() -> None:
    n = 20_000
    found = Counter(assign(0, content(number), SHARES, official=False) for number in range(n))
    assert "test" not in found
    for name, share in {"validation": 0.05, "gate": 0.10}.items():
        assert abs(found[name] / n - share) < 4 * (share * (1 - share) / n) ** 0.5
    assert assign(0, content(1), SHARES, official=True) == "test"


@given(st.integers(0, 100), CONTENT)
def test_positions_lie_in_the_unit_interval_and_hang_on_the_seed(seed: int, key: str) -> None:
    assert 0 <= position(seed, key) < 1
    assert position(seed, key) == position(seed, key)
    assert position(seed, key) != position(seed + 1, key)


@given(CONTENT, SHARE, SHARE, st.floats(0, 0.2))
def test_a_larger_validation_share_only_takes_from_train(
    key: str, validation: float, gate: float, more: float
) -> None:
    before = assign(0, key, Shares(validation, gate, 0.15))
    after = assign(0, key, Shares(validation + more, gate, 0.15))
    assert after == before or (before, after) == ("train", "validation")


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans()), max_size=40)


@given(ROWS, ROWS, st.booleans())
def test_new_images_move_no_image_to_another_split(
    old: list[tuple[int, int, bool]], new: list[tuple[int, int, bool]], has_test: bool
) -> None:
    def splits(rows: list[tuple[int, int, bool]]) -> dict[str, str]:
        hashes = [content(number) for number, _, _ in rows]
        official = [has_test and own for _, _, own in rows]
        chosen = select(hashes, [label for _, label, _ in rows], official, 0)
        found: dict[str, str] = {}
        for row in chosen.kept.tolist():
            own = official[row] if has_test else None
            split = assign(7, hashes[row], SHARES, official=own)
            assert found.setdefault(hashes[row], split) == split  # duplicates go together
        return found

    # An image outside the official test set may later be found inside; nothing else moves.
    grown = splits(old + [row for row in new if not (has_test and row[2])])
    before = splits(old)
    for key in before.keys() & grown.keys():
        assert grown[key] == before[key]


@given(ROWS)
def test_every_row_is_kept_or_accounted_for(rows: list[tuple[int, int, bool]]) -> None:
    hashes = [content(number) for number, _, _ in rows]
    labels = [label for _, label, _ in rows]
    official = [own for _, _, own in rows]
    chosen = select(hashes, labels, official, 0)
    kept = chosen.kept.tolist()
    assert len(kept) + chosen.duplicates + len(chosen.conflicts) == len(rows)
    assert set(kept) >= {row for row, own in enumerate(official) if own}  # never thinned
    others = [hashes[row] for row in kept if not official[row]]
    assert len(others) == len(set(others))
    assert not set(others) & {hashes[row] for row in kept if official[row]}
    for row in chosen.conflicts:
        twins = [at for at, key in enumerate(hashes) if key == hashes[row]]
        assert len({labels[at] for at in twins}) > 1


def test_duplicates_and_conflicts() -> None:
    same, other = content(1), content(2)
    chosen = select([same, same, other, other], [0, 0, 0, 1], [False] * 4, 0)
    assert (chosen.kept.tolist(), chosen.duplicates, chosen.conflicts) == ([0], 1, (2, 3))
    chosen = select([same, same, same], [0, 1, 0], [False, False, True], 0)
    assert (chosen.kept.tolist(), chosen.duplicates, chosen.conflicts) == ([2], 1, (1,))


@given(st.integers(1, 60), st.integers(0, 20))
def test_a_limit_takes_the_smallest_hashes_and_keeps_the_test_share(limit: int, tests: int) -> None:
    hashes = [content(number) for number in range(50)]
    official = [row < tests for row in range(50)]
    kept = select(hashes, [0] * 50, official, limit).kept.tolist()
    assert len(kept) == min(limit, 50)
    if limit < 50 and tests:
        share = sum(official[row] for row in kept)
        assert abs(share - limit * tests / 50) <= 1
    for own in (False, True):
        chosen = sorted(hashes[row] for row in kept if official[row] == own)
        assert (
            chosen
            == sorted(h for h, o in zip(hashes, official, strict=True) if o == own)[: len(chosen)]
        )


def test_an_official_validation_set_is_the_validation_split() -> None:
    n = 20_000
    for official in (None, False):
        found = Counter(
            assign(0, content(number), SHARES, official=official, validation=False)
            for number in range(n)
        )
        assert "validation" not in found
        assert ("test" in found) == (official is None)
        assert abs(found["gate"] / n - 0.10) < 4 * (0.09 / n) ** 0.5
    assert assign(0, content(1), SHARES, official=False, validation=True) == "validation"


RANKED = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(0, 2)), max_size=40)


@given(RANKED)
def test_no_image_is_in_two_official_sets_and_the_test_goes_first(
    rows: list[tuple[int, int, int]],
) -> None:
    hashes = [content(number) for number, _, _ in rows]
    labels = [label for _, label, _ in rows]
    ranks = [rank for _, _, rank in rows]
    tests, held = [rank == 2 for rank in ranks], [rank == 1 for rank in ranks]
    chosen = select(hashes, labels, tests, 0, held)
    kept = chosen.kept.tolist()
    assert len(kept) + chosen.duplicates + len(chosen.conflicts) == len(rows)
    best = {key: max(r for h, r in zip(hashes, ranks, strict=True) if h == key) for key in hashes}
    for row, key in enumerate(hashes):
        assert (row in chosen.leaks) == (ranks[row] < best[key])
        if ranks[row]:
            assert (row in kept) == (ranks[row] == best[key])
    assert all(ranks[row] == best[hashes[row]] for row in kept)


@given(st.integers(1, 60), st.integers(0, 20), st.integers(0, 20))
def test_a_limit_keeps_the_share_of_each_official_set(limit: int, tests: int, held: int) -> None:
    hashes = [content(number) for number in range(60)]
    own = [[row < tests for row in range(60)], [tests <= row < tests + held for row in range(60)]]
    kept = select(hashes, [0] * 60, own[0], limit, own[1]).kept.tolist()
    assert len(kept) == limit
    for flags in own:
        share, whole = sum(flags[row] for row in kept), sum(flags)
        assert share <= whole
        if limit > 2:
            assert abs(share - limit * whole / 60) <= 1
