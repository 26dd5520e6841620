"""Where a group is to go on: wishes and bounds, times and durations as people write them, Kafka's CSV. No stack."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.offsets.files import (
    as_csv,
    from_csv,
    last_undo_file,
    new_undo_file,
    read_file,
    undo_folder,
    write_undo,
)
from ops.offsets.peek import SHOWN_MAX, legible
from ops.offsets.targets import (
    Mode,
    MoveRequest,
    PartitionPosition,
    duration,
    instant,
    offset_map,
    partitions,
    scope,
    target,
)
from ops.offsets.wishes import MoveOptions
from outbox.clock import EPOCH
from outbox.errors import Refused

SHANGHAI = ZoneInfo("Asia/Shanghai")
PLACE = ("topic", 0)

offsets = st.integers(0, 2**62)


@st.composite
def standings(draw: st.DrawFn) -> PartitionPosition:
    low, length = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    given_ = st.none() | st.integers(0, 3 * 10**6)
    return PartitionPosition(
        place=PLACE, low=low, high=low + length, committed=draw(given_), progress=draw(given_), is_ours=draw(st.booleans())
    )  # fmt: skip


@st.composite
def wishes(draw: st.DrawFn) -> MoveRequest:
    mode = draw(st.sampled_from(Mode))
    places = draw(st.dictionaries(st.just(PLACE), offsets))
    return MoveRequest(
        mode=mode, number=draw(st.integers(-(10**7), 10**7) if mode is Mode.SHIFT else offsets), places=places
    )


@given(standings(), wishes())
def test_a_target_lies_in_its_log_and_what_was_clamped_is_said(position: PartitionPosition, wish: MoveRequest) -> None:
    try:
        destination = target(wish, position)
    except Refused:
        assert (wish.mode, position.position, position.is_ours) == (Mode.SHIFT, None, False)
        return
    if destination is None:
        assert (wish.mode is Mode.PLACES and not wish.places) or (
            wish.mode is Mode.KAFKA and position.committed is None
        )
        return
    assert position.low <= destination.offset <= position.high
    if wish.mode is Mode.OFFSET:
        assert ("clamped" in destination.note) == (destination.offset != wish.number)
    if wish.mode is Mode.SHIFT and "clamped" not in destination.note and position.position is not None:
        assert destination.offset - position.position == wish.number


@given(standings())
def test_lag_is_what_lies_between_the_position_and_the_end(position: PartitionPosition) -> None:
    if position.position is None and not position.is_ours:
        assert position.behind is None
    else:
        assert position.behind is not None
        assert 0 <= position.behind <= position.high - position.low
        assert position.begin + position.behind == max(position.high, position.begin)


@pytest.mark.parametrize(
    ("wish", "committed", "progress", "expected"),
    [
        (MoveRequest(mode=Mode.EARLIEST), 50, None, 10),
        (MoveRequest(mode=Mode.LATEST), 50, None, 90),
        (MoveRequest(mode=Mode.CURRENT), 50, None, 50),
        (MoveRequest(mode=Mode.CURRENT), None, None, 90),
        (MoveRequest(mode=Mode.OFFSET, number=42), 50, None, 42),
        (MoveRequest(mode=Mode.OFFSET, number=9), 50, None, 10),
        (MoveRequest(mode=Mode.OFFSET, number=91), 50, None, 90),
        (MoveRequest(mode=Mode.SHIFT, number=-5), 50, None, 45),
        (MoveRequest(mode=Mode.SHIFT, number=-50), 50, None, 10),
        (MoveRequest(mode=Mode.PLACES, places={PLACE: 33}), 50, None, 33),
    ],
)
def test_each_mode(wish: MoveRequest, committed: int | None, progress: int | None, expected: int) -> None:
    destination = target(wish, PartitionPosition(place=PLACE, low=10, high=90, committed=committed, progress=progress))
    assert destination is not None
    assert destination.offset == expected


def test_of_ours_progress_counts_and_a_log_not_begun_begins_at_its_earliest() -> None:
    applied = PartitionPosition(place=PLACE, low=10, high=90, committed=70, progress=50, is_ours=True)
    fresh = PartitionPosition(place=PLACE, low=10, high=90, committed=70, is_ours=True)
    kafka, current, shift = (
        MoveRequest(mode=Mode.KAFKA),
        MoveRequest(mode=Mode.CURRENT),
        MoveRequest(mode=Mode.SHIFT, number=3),
    )
    assert [target(wish, applied).offset for wish in (kafka, current, shift)] == [70, 50, 53]  # type: ignore[union-attr]
    assert [target(wish, fresh).offset for wish in (kafka, current, shift)] == [70, 10, 13]  # type: ignore[union-attr]
    assert (applied.behind, fresh.behind) == (40, 80)


# ---- what an operator types -------------------------------------------------------------------------------------------


@given(st.integers(631_152_000_000, 4_102_444_800_000))
def test_an_instant_is_the_same_however_it_is_written(milliseconds: int) -> None:
    """From 1990 to 2100."""
    at = EPOCH + timedelta(milliseconds=milliseconds)
    written = [
        at.isoformat(), at.isoformat().replace("+00:00", "Z"), at.astimezone(SHANGHAI).isoformat(),
        str(milliseconds), f"{milliseconds}000000", f"{milliseconds // 1000}.{milliseconds % 1000:03}",
    ]  # fmt: skip
    if milliseconds // 1000 * 1000 == milliseconds:
        written.append(str(milliseconds // 1000))
    assert {instant(text, None) for text in written} == {at}
    local = at.astimezone(SHANGHAI).replace(tzinfo=None)
    if at.astimezone(SHANGHAI).replace(fold=0).utcoffset() == at.astimezone(SHANGHAI).replace(fold=1).utcoffset():
        try:
            assert instant(local.isoformat(), SHANGHAI) == at
        except ValueError:  # the hour of a change of clocks, which China had until 1991
            assert at.year < 1992


@pytest.mark.parametrize(
    ("text", "zone", "says"),
    [
        ("2026-11-25T08:00:00", None, "--tz"),
        ("2026-11-25", None, "--tz"),
        ("20261125", None, "--tz"),
        ("yesterday", None, "neither"),
        ("", SHANGHAI, "neither"),
        ("2026-10-25T02:30:00", ZoneInfo("Europe/Berlin"), "twice or never"),
        ("2026-03-29T02:30:00", ZoneInfo("Europe/Berlin"), "twice or never"),
        ("1700000000000.5", None, "only seconds"),
        ("9" * 40, None, "too far"),
        ("-1700000000", None, "neither"),
    ],
)
def test_a_time_that_could_mean_two_is_refused(text: str, zone: ZoneInfo | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        instant(text, zone)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("PT1H30M", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("P2D", timedelta(days=2)),
        ("P1DT12H", timedelta(hours=36)),
        ("PT0.5S", timedelta(milliseconds=500)),
        ("1w", timedelta(weeks=1)),
        ("60s", timedelta(minutes=1)),
        ("0s", timedelta(0)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize("text", ["", "P", "PT", "5", "m", "P1M", "P1Y", "-5m", "1h 30m", "9" * 30 + "d", "2 days"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration|is too long"):
        duration(text)


def test_scopes_and_maps() -> None:
    assert scope("a.b-c_d:3,1") == ("a.b-c_d", frozenset({1, 3}))
    assert partitions("0,2") == frozenset({0, 2})
    assert offset_map('{"0": 1, "2": 3}') == {0: 1, 2: 3}
    for bad in ("a b", "a:", "a:x", ":1", "a:1,", "", "a:-1"):
        with pytest.raises(ValueError, match="neither a topic"):
            scope(bad)
    for bad in ("", "[]", "{}", '{"a": 1}', '{"0": -1}', '{"0": true}', '{"0": "1"}', '{"0": 1.5}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"JSON|no map|is no partition"):
            offset_map(bad)
    for twice in ('{"0": 7, "00": 9}', '{"0": 7, "0": 9}'):
        with pytest.raises(ValueError, match=r"is no partition|is there twice"):
            offset_map(twice)
    with pytest.raises(ValueError, match="are no partitions"):
        partitions("0-2")


# ---- files ------------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=300)
places = st.dictionaries(
    st.tuples(st.from_regex(r"\A[A-Za-z0-9._-]{1,20}\Z"), st.integers(0, 9999)), offsets, max_size=9
)


@given(st.dictionaries(names, places, min_size=1, max_size=4))
def test_what_is_written_as_csv_is_read_back(groups: dict[str, dict[tuple[str, int], int]]) -> None:
    content = as_csv(groups)
    assert {name: from_csv(content, name, others=groups) for name in groups} == groups
    widths = {len(row) for row in csv.reader(io.StringIO(content))}
    assert widths <= {4 if len(groups) > 1 else 3}


@pytest.mark.parametrize(
    "content",
    [
        "a,0",
        "a,0,1,2,3",
        "a,x,1",
        "a,0,-1",
        "a,0,1\na,0,2",
        ",0,1",
        "a,0,1.5",
        "a,,1",
        "a,0,\u0663",
        f"a,0,{'9' * 5000}",
        "TOPIC,PARTITION,OFFSET",
        "g,a,0,1\n,a,1,2",
        "g,a,0,1\ngg,a,1,2",
        "a,0,1\na,00,2",
    ],
)
def test_a_line_that_is_none_is_named(content: str) -> None:
    with pytest.raises(Refused, match=r"line \d"):
        from_csv(content, "g")


def test_a_byte_order_mark_hides_no_line(tmp_path: Path) -> None:
    file = tmp_path / "offsets.csv"
    file.write_bytes(b"\xef\xbb\xbfg,a,0,1\ng,a,1,2\n")
    assert read_file(file, "g") == {("a", 0): 1, ("a", 1): 2}


def test_a_file_that_says_nothing_of_the_group_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "offsets.csv"
    for content in (b"", b"other,a,0,1\n", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(Refused):
            read_file(file, "g")
    with pytest.raises(Refused, match="cannot be read"):
        read_file(tmp_path / "none", "g")


@given(st.lists(names, min_size=2, max_size=5, unique=True))
def test_groups_have_undo_folders_of_their_own_inside_the_cluster_s(groups: list[str]) -> None:
    home = Path("/home")
    folders = [undo_folder(home, "cluster", name) for name in groups]
    assert len(set(folders)) == len(groups)
    assert all(folder.parent == home / "undo" / "cluster" and len(folder.name) < 150 for folder in folders)
    assert undo_folder(home, "a", "g") != undo_folder(home, "b", "g")
    assert undo_folder(home, "a", "..").name not in (".", "..")


def test_the_last_undo_file_is_the_last_by_its_instant_and_none_is_written_over(tmp_path: Path) -> None:
    folder = undo_folder(tmp_path, "c", "g")
    with pytest.raises(Refused, match="no undo file"):
        last_undo_file(folder)
    first = datetime(2026, 11, 25, 8, tzinfo=UTC)
    for number in (2, 0, 1):
        write_undo(new_undo_file(folder, first + timedelta(microseconds=number)), "g", {PLACE: number})
    last = last_undo_file(folder)
    assert read_file(last, "g") == {PLACE: 2}
    assert last.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="nothing was moved"):
        write_undo(last, "g", {PLACE: 7})
    assert read_file(last, "g") == {PLACE: 2}


@pytest.mark.parametrize(
    ("options", "given_"),
    [
        (MoveOptions(), 0), (MoveOptions(to_offset=0), 1), (MoveOptions(shift_by=0), 1), (MoveOptions(to_offset=0, to_latest=True), 2),
        (MoveOptions(from_kafka=True), 1), (MoveOptions(at=EPOCH, to_event="e"), 2),
    ],
)  # fmt: skip
def test_nought_is_a_place_to_go_to_as_any_other(options: MoveOptions, given_: int) -> None:
    assert options.given == given_


@given(st.binary(max_size=1000))
def test_anybody_s_bytes_do_nothing_to_a_terminal(content: bytes) -> None:
    text = legible(content)
    assert text.isprintable()
    assert len(text) <= SHOWN_MAX
