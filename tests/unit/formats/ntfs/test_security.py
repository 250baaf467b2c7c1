# SPDX-License-Identifier: Apache-2.0
"""Security descriptors, as bytes and as SDDL."""

from __future__ import annotations

import base64

import pytest

from lamella.errors import FormatError, InvalidInput, Unsupported
from lamella.formats.ntfs import sddl, security
from lamella.formats.ntfs.security import Ace, Acl, SecurityDescriptor, Sid

KNOWN = base64.b64decode(
    "AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA"
    "/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)
FILES = "O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)"
DIRECTORIES = (
    "O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)"
    "(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CI;DC;;;BU)"
)
USERS = base64.b64decode("AQAAgBQAAAAkAAAAAAAAAAAAAAABAgAAAAAABSAAAAAhAgAAAQIAAAAAAAUgAAAAIQIAAA==")


class TestBytes:
    def test_a_known_descriptor(self) -> None:
        found = SecurityDescriptor.decode(KNOWN)
        assert str(found.owner) == "S-1-5-32-544"
        assert str(found.group) == "S-1-5-18"
        assert found.sacl is None
        assert found.dacl is not None
        assert [(ace.type, ace.flags, ace.mask, str(ace.sid), ace.extra) for ace in found.dacl.aces] == [
            (0, 0, 0x1F01FF, "S-1-5-32-544", b""),
            (0, 0, 0x1F01FF, "S-1-5-18", b""),
            (0, 0, 0x1200A9, "S-1-5-32-545", b""),
        ]
        assert found.encode() == KNOWN

    def test_no_list_and_an_empty_list_are_told_apart(self) -> None:
        absent = SecurityDescriptor(security.SELF_RELATIVE)
        null = SecurityDescriptor(security.SELF_RELATIVE | security.DACL_PRESENT)
        empty = SecurityDescriptor(security.SELF_RELATIVE | security.DACL_PRESENT, dacl=Acl(()))
        assert [SecurityDescriptor.decode(one.encode()) for one in (absent, null, empty)] == [absent, null, empty]

    def test_entries_with_guids_conditions_and_unknown_types_are_kept_raw(self) -> None:
        conditional = Ace.simple(0x09, 0, 1, Sid(1, (0,)))
        aces = (
            Ace(0x05, 0, bytes(4) + b"\1\0\0\0" + bytes(16) + Sid(5, (18,)).encode()),
            Ace(0x09, 0, conditional.body + b"artx\0\0\0\0"),
            Ace(0x7F, 3, b"?"),
        )
        made = SecurityDescriptor(0x8004, dacl=Acl(aces, 4))
        found = SecurityDescriptor.decode(made.encode())
        assert found == made
        assert found.dacl is not None
        assert [(ace.mask, ace.sid) for ace in found.dacl.aces] == [(0, None), (1, Sid(1, (0,))), (None, None)]
        assert found.dacl.aces[1].extra == b"artx\0\0\0\0"

    def test_parts_may_lie_anywhere_and_be_shared(self) -> None:
        sid = Sid(5, (32, 544)).encode()
        data = KNOWN[:4] + (24).to_bytes(4, "little") * 2 + bytes(8) + b"gap." + sid
        found = SecurityDescriptor.decode(data[:2] + b"\0\x80" + data[4:])
        assert found.owner == found.group == Sid(5, (32, 544))

    def test_a_descriptor_cut_anywhere_is_refused(self) -> None:
        for cut in range(len(KNOWN)):
            with pytest.raises(FormatError):
                SecurityDescriptor.decode(KNOWN[:cut])

    @pytest.mark.parametrize(
        ("at", "value"),
        [
            (0, 2),
            (3, 0),
            (4, 19),
            (4, 255),
            (16, 255),
            (20, 2),
            (21, 16),
            (48, 5),
            (50, 255),
            (50, 7),
            (52, 4),
            (58, 3),
        ],
    )
    def test_a_wrong_field_is_refused(self, at: int, value: int) -> None:
        with pytest.raises(FormatError):
            SecurityDescriptor.decode(KNOWN[:at] + bytes((value,)) + KNOWN[at + 1 :])

    def test_what_cannot_be_written_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="do not state it"):
            SecurityDescriptor(0x8000, dacl=Acl(())).encode()
        for sid in (Sid(1 << 48), Sid(5, (1 << 32,)), Sid(5, (-1,)), Sid(5, (0,) * 16)):
            with pytest.raises(InvalidInput):
                sid.encode()
        for acl in (Acl((Ace(0, 0, bytes(65532)),)), Acl((Ace(0x7F, 0, bytes(40000)),) * 2)):
            with pytest.raises(InvalidInput, match="too long"):
                acl.encode()

    def test_sids_as_text(self) -> None:
        assert Sid.parse("s-1-0x100000000-7") == Sid(1 << 32, (7,))
        assert str(Sid(1 << 32, (7,))) == "S-1-0x000100000000-7"
        for text in (
            "",
            "S-1",
            "S-2-5",
            "S-1-5-",
            "S-1-5-4294967296",
            "S-1-5-x",
            "S-1-5" + "-1" * 16,
            "S-1-999999999999999",
        ):
            with pytest.raises(InvalidInput):
                Sid.parse(text)


class TestText:
    def test_known_texts(self) -> None:
        assert sddl.format(SecurityDescriptor.decode(KNOWN)) == FILES
        assert sddl.parse(FILES).encode() == KNOWN
        assert sddl.parse("O:BUG:BU").encode() == USERS

    @pytest.mark.parametrize(
        "text",
        [
            FILES,
            DIRECTORIES,
            "",
            "D:",
            "D:NO_ACCESS_CONTROL",
            "O:S-1-5-21-1-2-3-500G:SYD:PARAI(D;OICINPIOIDSAFA;0x0;;;WD)S:PAI(AU;SAFA;CCGAGR;;;AN)(ML;;NWNRNX;;;HI)",
            "O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
            "D:(A;;SDRCWDWOGAGXGWGR;;;UD)(A;;FR;;;OW)(A;;FW;;;BG)(A;;FX;;;SH)",
        ],
    )
    def test_what_is_read_is_written_the_same(self, text: str) -> None:
        made = sddl.parse(text)
        assert sddl.format(made) == text
        assert sddl.format(SecurityDescriptor.decode(made.encode())) == text

    @pytest.mark.parametrize(
        ("text", "same"),
        [
            ("s:d:(a;;ga;;;wd)g:syo:ba", "O:BAG:SYD:(A;;GA;;;WD)S:"),
            ("D:(A; ;0X1f01ff; ; ;BA)", "D:(A;;FA;;;BA)"),
            (
                "D:(A;;KA;;;BA)(A;;010;;;BA)(A;;12;;;BA)(A;;FRFX;;;BA)",
                "D:(A;;CCDCLCSWRPWPSDRCWDWO;;;BA)(A;;SW;;;BA)(A;;LCSW;;;BA)(A;;0x1200a9;;;BA)",
            ),
            (" O:S-1-5-32-544 ", "O:BA"),
        ],
    )
    def test_other_ways_to_write_the_same(self, text: str, same: str) -> None:
        assert sddl.format(sddl.parse(text)) == same

    @pytest.mark.parametrize("text", ["O:DA", "G:LA", "D:(A;;FA;;;EA)", "O:KA"])
    def test_accounts_of_a_domain_are_refused(self, text: str) -> None:
        with pytest.raises(Unsupported, match="only a domain or machine"):
            sddl.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "D:(OA;;CR;bf967aba-0de6-11d0-a285-00aa003049e2;;WD)",
            "D:(XA;;FX;;;WD;(@User.a == (1)))",
            'S:(RA;;;;;WD;("a"))',
        ],
    )
    def test_entries_that_are_kept_as_bytes_have_no_text(self, text: str) -> None:
        with pytest.raises(Unsupported):
            sddl.parse(text)

    @pytest.mark.parametrize(
        "ace",
        [
            Ace(0x05, 0, bytes(24) + Sid(1, (0,)).encode()),
            Ace(0, 0x20, Ace.simple(0, 0, 1, Sid(1)).body),
            Ace(0, 0, Ace.simple(0, 0, 1, Sid(1)).body + b"more"),
        ],
    )
    def test_entries_without_a_text_are_told(self, ace: Ace) -> None:
        with pytest.raises(Unsupported):
            sddl.format(SecurityDescriptor(0x8004, dacl=Acl((ace,))))

    @pytest.mark.parametrize(
        "text",
        [
            *("O", "O:", "O:ZZ", "O:BAO:BA", "X:BA", "O:BA G:BA", "D:(A;;FA;;;BA", "D:(A;;FA;;BA)", "D:(A;;FAX;;;BA)"),
            *("D:(A;;F;;;BA)", "D:(Q;;FA;;;BA)", "D:(A;XX;FA;;;BA)", "D:(A;;0x100000000;;;BA)", "D:(A;;09;;;BA)"),
            *("D:NO_ACCESS_CONTROL(A;;FA;;;BA)", "D:(A;;FA;;;S-1-5-)", "D:D:", "é", "O:BAé", "D:()", "D:(A;;FA;1;;BA)"),
        ],
    )
    def test_malformed_text_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput):
            sddl.parse(text)
