"""Whom to drop: pure decisions."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.eviction import Candidate, victims
from forebay.cacheruntime.keys import ContentId, DatasetId

_CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.binary(min_size=16, max_size=16).map(ContentId),
        st.just(DatasetId("00" * 8)),
        st.integers(0, 100),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 2.5]),
    ),
    max_size=20,
)


@given(_CANDIDATES, st.integers(-5, 1500))
def test_enough_and_no_more(candidates: list[Candidate], need: int) -> None:
    chosen = victims(candidates, need)
    freed = sum(c.bytes for c in chosen)
    if need <= 0:
        assert chosen == []
    elif sum(c.bytes for c in candidates) < need:
        assert len(chosen) == len(candidates)
    else:
        assert freed >= need
        assert freed - chosen[-1].bytes < need, "the last one was needed"


@given(_CANDIDATES, st.integers(1, 500))
def test_oldest_dataset_first_then_what_was_not_read(candidates: list[Candidate], need: int) -> None:
    chosen = victims(candidates, need)
    keys = [(c.last_used, c.touched) for c in chosen]
    assert keys == sorted(keys)
    left = [c for c in candidates if not any(c is each for each in chosen)]
    assert not left or not keys or keys[-1] <= min((c.last_used, c.touched) for c in left)
