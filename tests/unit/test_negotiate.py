"""What INIT settles, from what kernels offer and what a mount wishes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.fuse.negotiate import Agreement, CounterOffer, UnsupportedKernel, Wish, negotiate
from forebay.fuse.wire import Capability, Init

LINUX_6_18 = Init(7, 45, 131072, Capability(0x5FD_73FF_FFFB))
"""Read from the device."""

LINUX_5_4 = Init(7, 31, 131072, Capability(0x03FF_FFFB))

EVERYTHING = Init(7, 45, 131072, Capability((1 << 64) - 1))


def agree(offered: Init = LINUX_6_18, wish: Wish | None = None) -> Agreement:
    agreement = negotiate(offered, wish or Wish(page_bytes=4096))
    assert isinstance(agreement, Agreement)
    return agreement


class TestVersion:
    def test_a_newer_minor_comes_down_to_ours(self) -> None:
        agreement = agree(LINUX_6_18._replace(minor=99))
        assert agreement.reply.minor == 45
        assert agreement.kernel_minor == 99

    def test_an_older_minor_is_kept(self) -> None:
        assert agree(LINUX_5_4).reply.minor == 31

    @pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99)])
    def test_too_old(self, major: int, minor: int) -> None:
        with pytest.raises(UnsupportedKernel, match=rf"FUSE {major}\.{minor}.*7\.31"):
            agree(LINUX_6_18._replace(major=major, minor=minor))

    def test_a_newer_major_has_to_ask_again(self) -> None:
        offer = negotiate(Init(8, 0, 0, Capability(0)), Wish(page_bytes=4096))
        assert isinstance(offer, CounterOffer)
        assert offer.reply.major == 7


class TestCapabilities:
    def test_on_linux_6_18(self) -> None:
        assert agree().reply.flags == (
            Capability.ASYNC_READ
            | Capability.SPLICE_WRITE
            | Capability.SPLICE_MOVE
            | Capability.SPLICE_READ
            | Capability.DO_READDIRPLUS
            | Capability.PARALLEL_DIROPS
            | Capability.MAX_PAGES
            | Capability.CACHE_SYMLINKS
            | Capability.EXPLICIT_INVAL_DATA
            | Capability.INIT_EXT
            | Capability.PASSTHROUGH
            | Capability.HAS_RESEND
        )

    def test_on_linux_5_4(self) -> None:
        agreement = agree(LINUX_5_4)
        assert not agreement.passthrough
        assert not agreement.resend
        assert agreement.readdirplus
        assert agreement.splice_write
        assert agreement.splice_move
        assert agreement.splice_read
        assert agreement.reply.max_stack_depth == 0

    def test_wishes_left_out(self) -> None:
        agreement = agree(wish=Wish(page_bytes=4096, passthrough=False, readdirplus=False, resend=False))
        assert not agreement.passthrough
        assert not agreement.readdirplus
        assert not agreement.resend
        assert agreement.reply.max_stack_depth == 0

    def test_no_open_excludes_passthrough(self) -> None:
        agreement = agree(wish=Wish(page_bytes=4096, no_open=True))
        assert agreement.no_open
        assert Capability.NO_OPENDIR_SUPPORT in agreement.reply.flags
        assert not agreement.passthrough

    def test_without_no_open_passthrough_stays(self) -> None:
        offered = LINUX_6_18._replace(flags=LINUX_6_18.flags & ~Capability.NO_OPEN_SUPPORT)
        agreement = agree(offered, Wish(page_bytes=4096, no_open=True))
        assert not agreement.no_open
        assert Capability.NO_OPENDIR_SUPPORT not in agreement.reply.flags
        assert agreement.passthrough

    def test_nothing_above_bit_31_without_init_ext(self) -> None:
        offered = EVERYTHING._replace(flags=EVERYTHING.flags & ~Capability.INIT_EXT)
        agreement = agree(offered)
        assert agreement.reply.flags >> 32 == 0
        assert not agreement.passthrough
        assert not agreement.resend

    @given(st.integers(0, (1 << 64) - 1), st.booleans(), st.booleans())
    def test_always(self, offered: int, passthrough: bool, no_open: bool) -> None:
        wish = Wish(page_bytes=4096, passthrough=passthrough, no_open=no_open)
        agreement = agree(LINUX_6_18._replace(flags=Capability(offered)), wish)
        flags = agreement.reply.flags
        assert flags & ~Capability(offered) == 0, "only what was offered"
        assert Capability.WRITEBACK_CACHE not in flags
        assert Capability.AUTO_INVAL_DATA not in flags
        assert not (agreement.passthrough and agreement.no_open)
        assert (agreement.reply.max_stack_depth > 0) == agreement.passthrough


class TestSizes:
    def test_requests_of_1_mib(self) -> None:
        agreement = agree()
        assert agreement.reply.max_pages == 256
        assert agreement.max_read_bytes == 1 << 20

    def test_large_pages(self) -> None:
        agreement = agree(wish=Wish(page_bytes=65536))
        assert agreement.reply.max_pages == 16
        assert agreement.max_read_bytes == 1 << 20

    def test_not_more_than_the_kernel_takes(self) -> None:
        assert agree(wish=Wish(page_bytes=4096, max_request_bytes=1 << 24)).reply.max_pages == 256

    def test_without_max_pages(self) -> None:
        agreement = agree(LINUX_6_18._replace(flags=Capability.ASYNC_READ))
        assert agreement.reply.max_pages == 0
        assert agreement.max_read_bytes == 32 * 4096

    def test_read_buffers_hold_the_largest_ioctl(self) -> None:
        assert agree().max_write == 4096
        assert agree().read_buffer_bytes == 16384 + 80

    def test_read_ahead_beyond_the_offer_is_for_the_bdi(self) -> None:
        agreement = agree(wish=Wish(page_bytes=4096, max_readahead_bytes=4 << 20))
        assert agreement.reply.max_readahead == 131072
        assert agreement.readahead_bytes == 4 << 20

    def test_background_requests(self) -> None:
        assert agree().reply.max_background == 64
        assert agree().reply.congestion_threshold == 48

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"page_bytes": 5000}, "page_bytes is 5000"),
            ({"page_bytes": 0}, "page_bytes is 0"),
            ({"max_stack_depth": 3}, "max_stack_depth is 3"),
            ({"max_stack_depth": 0}, "max_stack_depth is 0"),
            ({"max_background": 47}, "congestion_threshold is 48, max_background 47"),
            ({"max_background": 65536}, "max_background 65536"),
            ({"congestion_threshold": 0}, "congestion_threshold is 0"),
            ({"max_readahead_bytes": -1}, "max_readahead_bytes is -1"),
            ({"max_request_bytes": 4095}, "max_request_bytes is 4095"),
        ],
    )
    def test_impossible_wishes(self, wrong: dict[str, int], text: str) -> None:
        fields = {"page_bytes": 4096, **wrong}
        with pytest.raises(ValueError, match=text):
            Wish(**fields)  # type: ignore[arg-type]  # the flags among the fields are not given here


class TestSuccessor:
    @pytest.mark.parametrize("no_open", [False, True])
    @pytest.mark.parametrize("offered", [LINUX_6_18, LINUX_5_4, EVERYTHING])
    def test_an_agreement_survives_as_text(self, offered: Init, no_open: bool) -> None:
        agreement = agree(offered, Wish(page_bytes=4096, no_open=no_open))
        again = Agreement.from_json(agreement.to_json())
        assert again == agreement
        assert isinstance(again.reply.flags, Capability)
        assert again.passthrough == agreement.passthrough

    def test_the_text_is_one_line(self) -> None:
        assert "\n" not in agree().to_json()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"format": 2}', '{"format": 1}', b"\xff"])
    def test_no_agreement(self, text: str | bytes) -> None:
        with pytest.raises(ValueError):
            Agreement.from_json(text)

    @pytest.mark.parametrize("field", ["page_bytes", "kernel_minor", "reply"])
    @pytest.mark.parametrize("value", [None, "1", -1, 1.5, True, {}])
    def test_a_field_is_wrong(self, field: str, value: object) -> None:
        fields = json.loads(agree().to_json())
        fields[field] = value
        with pytest.raises(ValueError, match=r"Agreement|InitReply"):
            Agreement.from_json(json.dumps(fields))

    @pytest.mark.parametrize("where", ["agreement", "reply"])
    def test_a_field_is_missing_or_unknown(self, where: str) -> None:
        for change in ("missing", "unknown"):
            fields = json.loads(agree().to_json())
            place = fields if where == "agreement" else fields["reply"]
            if change == "missing":
                place.popitem()
            else:
                place["novelty"] = 1
            with pytest.raises(ValueError):
                Agreement.from_json(json.dumps(fields))
