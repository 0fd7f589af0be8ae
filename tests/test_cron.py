"""Cron lines: durable.cron_next() beside croniter, and beside a second implementation that is as plain as can be."""

from __future__ import annotations

import calendar
from datetime import date, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from clusters import Database
from engine import Connection, refused, rows, value

UTC = timezone.utc
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# Clocks that change at various times of the day, by an hour, by half of one, and by a whole day.
ZONES = [
    "UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "America/Havana",
    "Pacific/Apia", "Asia/Kolkata", "Atlantic/Azores", "America/St_Johns",
]  # fmt: skip


# The second implementation: sets of values, and a look at one day after the other.


def values(field: str, low: int, high: int, names: list[str] | None = None) -> set[int]:
    found: set[int] = set()
    size = high - low + 1

    def number(text: str) -> int:
        return int(text) if text.isdigit() else low + (names or []).index(text.lower())

    for item in field.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        start = low if first in "*?" else number(first)
        end = number(last) if last else high if first in "*?" or step else start
        if end < start:
            end += size
        found |= {low + (n - low) % size for n in range(start, end + 1, int(step or 1))}
    return found


class Line:
    def __init__(self, line: str) -> None:
        fields = line.split()
        if len(fields) == 5:
            fields.insert(0, "0")
        second, minute, hour, self.day, month, self.weekday = fields
        self.seconds, self.minutes, self.hours = values(second, 0, 59), values(minute, 0, 59), values(hour, 0, 23)
        self.months = values(month, 1, 12, MONTHS)
        self.hourly = len(self.hours) == 24

    def matches_day(self, day: date) -> bool:
        last = calendar.monthrange(day.year, day.month)[1]
        weekday = (day.weekday() + 1) % 7
        by_day = any(
            day.day == last if item.lower() == "l" else day.day in values(item, 1, 31) for item in self.day.split(",")
        )
        by_weekday = any(self._matches_weekday(item.lower(), day, last, weekday) for item in self.weekday.split(","))
        either = self.day not in "*?" and self.weekday not in "*?"
        return day.month in self.months and (by_day or by_weekday if either else by_day and by_weekday)

    @staticmethod
    def _matches_weekday(item: str, day: date, last: int, weekday: int) -> bool:
        if "#" in item:
            name, _, nth = item.partition("#")
            return weekday in values(name, 0, 6, WEEKDAYS) and (day.day - 1) // 7 + 1 == int(nth)
        if "l" in item:
            return weekday in values(item.strip("l"), 0, 6, WEEKDAYS) and day.day + 7 > last
        return weekday in values(item, 0, 6, WEEKDAYS)

    def walls(self, start: datetime) -> Any:
        """The times on the wall from ``start`` on."""
        for ahead in range(366 * 45):
            day = start.date() + timedelta(days=ahead)
            if self.matches_day(day):
                for hour in sorted(self.hours):
                    if ahead == 0 and hour < start.hour:
                        continue
                    for minute in sorted(self.minutes):
                        for second in sorted(self.seconds):
                            wall = datetime.combine(day, time(hour, minute, second))
                            if wall >= start:
                                yield wall

    def next(self, after: datetime, zone: ZoneInfo) -> datetime:
        best: datetime | None = None
        # Where the clock goes back, what is earlier on the wall can come later.
        offsets = [offset(after + timedelta(hours=hours), zone) for hours in (-26, 0, 26)]
        back = max(offsets) - min(offsets)
        begin = (after.astimezone(zone) - back).replace(tzinfo=None, microsecond=0)
        for wall in self.walls(begin):
            for due in self.instants(wall, zone):
                if due > after and (best is None or due < best):
                    best = due
            if best is not None and wall > best.astimezone(zone).replace(tzinfo=None) + back:
                break
        assert best is not None
        return best

    def instants(self, wall: datetime, zone: ZoneInfo) -> list[datetime]:
        passes = sorted({wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)})
        real = [due for due in passes if due.astimezone(zone).replace(tzinfo=None) == wall]
        if not real:
            return [] if self.hourly else [change_before(passes[-1], zone)]
        return real if self.hourly else real[:1]


def offset(at: datetime, zone: ZoneInfo) -> timedelta:
    found = at.astimezone(zone).utcoffset()
    assert found is not None
    return found


def change_before(at: datetime, zone: ZoneInfo, within: timedelta = timedelta(days=1, seconds=1)) -> datetime:
    """When the clock last changed up to ``at``."""
    early, late = at - within, at
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
        if offset(middle, zone) == offset(at, zone):
            late = middle
        else:
            early = middle
    return late


# Lines and times


def field_of(low: int, high: int, names: list[str] | None = None) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    shown = number if names is None else number.flatmap(lambda n: st.sampled_from([str(n), names[n - low]]))
    span = st.tuples(number, number).filter(lambda pair: pair[0] < pair[1])
    step = st.integers(1, max(2, high // 2))
    item = st.one_of(
        shown.map(str),
        span.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        span.map(lambda pair: f"{pair[1]}-{pair[0]}"),
        st.tuples(span, step).map(lambda parts: f"{parts[0][0]}-{parts[0][1]}/{parts[1]}"),
        st.tuples(st.integers(low, high - 1), step).map(lambda parts: f"{parts[0]}/{parts[1]}"),
        step.map(lambda n: f"*/{n}"),
    )
    return st.one_of(st.just("*"), item, st.lists(item, min_size=2, max_size=3).map(",".join))


def nth_weekday() -> st.SearchStrategy[str]:
    weekday = st.integers(0, 6)
    return st.one_of(
        st.tuples(weekday, st.integers(1, 4)).map(lambda parts: f"{parts[0]}#{parts[1]}"),
        st.tuples(weekday, st.integers(1, 4)).map(lambda parts: f"{WEEKDAYS[parts[0]]}#{parts[1]}"),
        weekday.map(lambda n: f"L{n}"),
    )


@st.composite
def lines(draw: st.DrawFn) -> str:
    minute, hour = draw(field_of(0, 59)), draw(field_of(0, 23))
    # Days that every month has, so that the line is due within a year or so.
    day = draw(st.one_of(st.just("*"), field_of(1, 28), st.just("L"), st.just("1,L"), st.just("?")))
    month = draw(st.one_of(st.just("*"), field_of(1, 12, MONTHS)))
    weekday = draw(st.one_of(st.just("*"), field_of(0, 6, WEEKDAYS), nth_weekday(), st.just("7"), st.just("1-7")))
    second = draw(st.one_of(st.none(), field_of(0, 59)))
    fields = [minute, hour, day, month, weekday]
    return " ".join(fields if second is None else [second, *fields])


@st.composite
def times(draw: st.DrawFn, zone: str) -> datetime:
    """Any time, or one within two days of a change of the clock."""
    at = draw(st.datetimes(datetime(1975, 1, 1), datetime(2022, 12, 31))).replace(tzinfo=UTC)
    if draw(st.booleans()):
        info = ZoneInfo(zone)
        for day in range(0, 400, 7):
            week = at + timedelta(days=day)
            if offset(week, info) != offset(week + timedelta(days=7), info):
                change = change_before(week + timedelta(days=7), info, timedelta(days=7))
                return change + timedelta(seconds=draw(st.integers(-2 * 86_400, 86_400)))
    return at


def as_croniter_does(line: str) -> bool:
    """Whether croniter takes the line for what it is here; the differences are explained in sql/functions/time/cron.sql."""
    fields = line.split()
    day, weekday = fields[-3], fields[-1]
    for item in (item for field in fields for item in field.split(",")):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        if first.isdigit() and last.isdigit() and int(first) > int(last) and step:
            return False
    if day not in "*?" and weekday not in "*?":
        nth = "#" in weekday or "L" in weekday
        # What covers all days, croniter takes for a star.
        return not nth and values(weekday, 0, 6, WEEKDAYS) != set(range(7)) and not {"*/1", "1/1"} & set(day.split(","))
    return True


@pytest.fixture
def conn(db: Database) -> Connection:
    return db.connect()


def chain(conn: Connection, line: str, start: datetime, zone: str, count: int) -> list[datetime]:
    found = rows(
        conn,
        """with recursive due (n, at) as (
             select 0, %s::timestamptz union all select n + 1, durable.cron_next(%s, at, %s) from due where n < %s)
           select at from due where n > 0 order by n""",
        start, line, zone, count,
    )  # fmt: skip
    return [row.at.astimezone(UTC) for row in found]


def thorough(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


@pytest.mark.pg(15)
@thorough(700)
@given(line=lines().filter(as_croniter_does), start=times("UTC"))
def test_cron_next_agrees_with_croniter(conn: Connection, line: str, start: datetime) -> None:
    theirs = croniter(line, start, second_at_beginning=True)
    assert chain(conn, line, start, "UTC", 30) == [theirs.get_next(datetime) for _ in range(30)]


@pytest.mark.pg(15)
@thorough(350)
@given(line=lines(), zone_and_start=st.sampled_from(ZONES).flatmap(lambda zone: st.tuples(st.just(zone), times(zone))))
def test_31_clock_changes_are_followed_as_documented(
    conn: Connection, line: str, zone_and_start: tuple[str, datetime]
) -> None:
    zone, start = zone_and_start
    info, at = ZoneInfo(zone), start
    ours = chain(conn, line, start, zone, 3)
    for due in ours:
        assert due == Line(line).next(at, info)
        if as_croniter_does(line):
            theirs = croniter(line, at.astimezone(info), second_at_beginning=True).get_next(datetime).astimezone(UTC)
            if theirs != due:
                event("croniter differs at a change of the clock")
                first, last = min(theirs, due) - timedelta(days=1), max(theirs, due) + timedelta(days=1)
                assert len({offset(near, info) for near in (first, theirs, due, last)}) > 1, (
                    f"{line} after {at} in {zone}: {due}, not {theirs}"
                )
        at = due


def after(conn: Connection, line: str, start: str, zone: str, count: int) -> list[str]:
    """The next times that the line is due after a time on the wall, as the wall shows them, with the offset from UTC."""
    begin = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    return [
        due.astimezone(ZoneInfo(zone)).strftime("%d %H:%M%z").removesuffix("00")
        for due in chain(conn, line, begin, zone, count)
    ]


def test_31_a_skipped_time_is_due_once_when_the_clock_has_changed(conn: Connection) -> None:
    assert after(conn, "30 2 * * *", "2026-03-28 12:00", "Europe/Berlin", 2) == ["29 03:00+02", "30 02:30+02"]
    assert after(conn, "0,20,40 2 * * *", "2026-03-28 12:00", "Europe/Berlin", 2) == ["29 03:00+02", "30 02:00+02"]
    assert after(conn, "0 2,3 * * *", "2026-03-28 12:00", "Europe/Berlin", 2) == ["29 03:00+02", "30 02:00+02"]
    # A change at midnight, where the day begins at 01:00.
    assert after(conn, "15 0 * * 0", "2018-11-03 12:00", "America/Sao_Paulo", 2) == ["04 01:00-02", "11 00:15-02"]
    # A day that was left out altogether.
    assert after(conn, "0 9 30 12 *", "2011-12-01 00:00", "Pacific/Apia", 1) == ["31 00:00+14"]


def test_31_a_repeated_time_is_due_the_first_time(conn: Connection) -> None:
    assert after(conn, "30 2 * * *", "2026-10-24 12:00", "Europe/Berlin", 2) == ["25 02:30+02", "26 02:30+01"]
    assert after(conn, "*/20 2 * * *", "2026-10-25 01:00", "Europe/Berlin", 4) == [
        "25 02:00+02", "25 02:20+02", "25 02:40+02", "26 02:00+01",
    ]  # fmt: skip
    # Asked in the second pass, it was due already.
    second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert chain(conn, "30 2 * * *", second_pass, "Europe/Berlin", 1) == [datetime(2026, 10, 26, 1, 30, tzinfo=UTC)]


def test_31_every_hour_follows_the_hours_as_they_pass(conn: Connection) -> None:
    assert after(conn, "30 * * * *", "2026-03-29 01:00", "Europe/Berlin", 2) == ["29 01:30+01", "29 03:30+02"]
    assert after(conn, "*/30 * * * *", "2026-10-25 02:10", "Europe/Berlin", 4) == [
        "25 02:30+02", "25 02:00+01", "25 02:30+01", "25 03:00+01",
    ]  # fmt: skip


def test_intervals_pay_no_heed_to_the_clock(conn: Connection) -> None:
    start = datetime(2026, 3, 29, 0, 59, 40, 500, tzinfo=UTC)
    assert chain(conn, "30 seconds", start, "Europe/Berlin", 3) == [
        datetime(2026, 3, 29, 1, 0, n, tzinfo=UTC) if n < 60 else datetime(2026, 3, 29, 1, 1, tzinfo=UTC)
        for n in (0, 30, 60)
    ]
    assert chain(conn, "1 day", start, "UTC", 1) == [datetime(2026, 3, 30, tzinfo=UTC)]
    assert chain(conn, "1 hour 30 minutes", start, "UTC", 1) == [datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@midnight", "0 0 * * *"), ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"), ("@annually", "0 0 1 1 *"), ("@HOURLY", "0 * * * *"),
        ("0 0 0 * * ?", "0 0 * * *"), (" 0\t0  * * 7 ", "0 0 * * SUN"), ("0 0 * * 5L", "0 0 * * L5"),
        ("0 0 * * fri-mon", "0 0 * * 0,1,5,6"), ("0 22-4/3 * * *", "0 22,1,4 * * *"), ("5-5 0 * * *", "5 0 * * *"),
        ("0 0 * * 1#1,3", "0 0 * * 3,mon#1"), ("60 seconds", "* * * * *"), ("01:00:00", "@hourly"),
    ],
)  # fmt: skip
def test_two_ways_to_write_the_same(conn: Connection, line: str, same: str) -> None:
    start = datetime(2026, 5, 17, 11, 22, 33, tzinfo=UTC)
    assert chain(conn, line, start, "UTC", 10) == chain(conn, same, start, "UTC", 10)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("61 * * * *", "field minute: '61'", "It takes 0 to 59, "),
        ("* 24 * * *", "field hour: '24'", "It takes 0 to 23, "),
        ("* * 0 * *", "field day of month: '0'", "It takes 1 to 31, "),
        ("* * * 13 *", "field month: '13'", "names from jan to dec"),
        ("* * * * 8", "field day of week: '8'", "names from sun to sat"),
        ("* * * foo *", "field month: 'foo'", "names from jan to dec"),
        ("60 * * * * *", "field second: '60'", "It takes 0 to 59, "),
        ("*/0 * * * *", "field minute: '*/0'", "steps from 1 on"),
        ("1-2-3 * * * *", "field minute: '1-2-3'", "ranges such as 0-2"),
        ("-5 * * * *", "field minute: ''", "It takes 0 to 59"),
        ("1,,2 * * * *", "field minute: ''", "lists such as 0,2"),
        ("* L * * *", "field hour: 'L'", "It takes 0 to 23"),
        ("* * 15W * *", "field day of month: '15W'", "nearest weekday"),
        ("* * * * 1#6", "field day of week: '1#6'", "number behind # is 1 to 5"),
        ("* * * * L", "field day of week: 'L'", "names from sun to sat"),
        ("0 0 31 2 *", "it never falls due", "No year has a day"),
        ("0 0 30,31 feb *", "it never falls due", "No year has a day"),
        ("0 0 31 4,6,9,11 ?", "it never falls due", "No year has a day"),
        ("* * * *", "not five or six fields", "Write minute, hour"),
        ("* * * * * * *", "not five or six fields", "Write minute, hour"),
        ("", "not five or six fields", "Write minute, hour"),
        ("@reboot", "not five or six fields", "@hourly"),
        ("every day", "not five or six fields", "@hourly"),
        ("-30 seconds", "one or more whole seconds", "The shortest"),
        ("0 seconds", "one or more whole seconds", "The shortest"),
        ("0.5 seconds", "one or more whole seconds", "The shortest"),
        ("1 month", "months and years", "'0 0 1 * *'"),
        ("5 fortnights", "not an interval", "'30 seconds'"),
        ("-1 day 30:00", "no minus sign", "'6 hours'"),
        (None, "cron 'NULL'", "Write minute, hour"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line_is_quoted_with_what_is_allowed(
    conn: Connection, line: str | None, message: str, hint: str
) -> None:
    with refused("WF005") as info:
        value(conn, "select durable.cron_next(%s, '2026-01-01')", line)
    assert line is None or f"cron '{line}'" in str(info.value)
    assert message in (info.value.diag.message_primary or "")
    assert hint in (info.value.diag.message_hint or "")


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "CET", "UTC+2", "EST5EDT4", "Europe/Berlin5", "", "<+03>-3", None])
def test_only_names_of_places_are_time_zones(conn: Connection, zone: str | None) -> None:
    with refused("WF005") as info:
        value(conn, "select durable.cron_next('@daily', '2026-01-01', %s)", zone)
    assert "timezone" in (info.value.diag.message_primary or "")
    assert "Europe/Berlin" in (info.value.diag.message_hint or "")


@pytest.mark.parametrize("start", ["infinity", "-infinity", None, "0001-01-01 BC", "12000-01-01"])
def test_the_time_to_begin_at_is_in_range(conn: Connection, start: str | None) -> None:
    with refused("WF005"):
        value(conn, "select durable.cron_next('@daily', %s)", start)


def test_rare_days_are_found(conn: Connection) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert [due.year for due in chain(conn, "0 0 29 2 *", datetime(2095, 1, 1, tzinfo=UTC), "UTC", 2)] == [2096, 2104]
    assert [due.year for due in chain(conn, "0 0 * 2 1#5", start, "UTC", 2)] == [2044, 2072]
    assert [(due.month, due.day) for due in chain(conn, "0 0 L * *", start, "UTC", 4)] == [
        (1, 31), (2, 28), (3, 31), (4, 30),
    ]  # fmt: skip


def test_the_session_s_time_zone_does_not_matter(conn: Connection) -> None:
    conn.execute("set timezone = 'Pacific/Apia'")
    assert after(conn, "30 2 * * *", "2026-03-28 12:00", "Europe/Berlin", 1) == ["29 03:00+02"]
    assert chain(conn, "@daily", datetime(2026, 1, 1, 5, tzinfo=UTC), "UTC", 1) == [datetime(2026, 1, 2, tzinfo=UTC)]
