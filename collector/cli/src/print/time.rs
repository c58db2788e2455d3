//! Times and spans, for people and for programs.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::{Timestamp, tz::TimeZone};

/// A wall-clock time in nanoseconds since 1970 as RFC 3339 in UTC with nine decimals; `None` for 0, which the protocol uses
/// for "not yet", and for what no calendar holds.
pub fn rfc3339(wall_ns: i64) -> Option<String> {
    timestamp(wall_ns).map(|t| format!("{t:.9}"))
}

fn timestamp(wall_ns: i64) -> Option<Timestamp> {
    if wall_ns == 0 { None } else { Timestamp::from_nanosecond(wall_ns.into()).ok() }
}

/// The time zone that people are shown.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// UTC, or what this machine is set to.
    pub fn new(utc: bool) -> Self {
        Self(if utc { TimeZone::UTC } else { TimeZone::system() })
    }

    /// `2026-11-22 09:47:42 +01`, or `-`.
    pub fn full(&self, wall_ns: i64) -> String {
        self.format(wall_ns, "%Y-%m-%d %H:%M:%S %Z")
    }

    /// `2026-11-22 09:47`, for tables.
    pub fn minute(&self, wall_ns: i64) -> String {
        self.format(wall_ns, "%Y-%m-%d %H:%M")
    }

    /// `Nov 22 09:47` for the last half year, else `2025-11-22`: as `ls` does, for narrow tables.
    pub fn near(&self, wall_ns: i64, now_ns: i64) -> String {
        const HALF_YEAR: Duration = Duration::from_secs(182 * 86400);
        if between(wall_ns, now_ns) > HALF_YEAR { self.date(wall_ns) } else { self.format(wall_ns, "%b %d %H:%M") }
    }

    /// `09:47:42`, for timelines.
    pub fn clock(&self, wall_ns: i64) -> String {
        self.format(wall_ns, "%H:%M:%S")
    }

    /// `2026-11-22`, for timelines that pass midnight.
    pub fn date(&self, wall_ns: i64) -> String {
        self.format(wall_ns, "%Y-%m-%d")
    }

    fn format(&self, wall_ns: i64, format: &str) -> String {
        match timestamp(wall_ns) {
            Some(t) => t.to_zoned(self.0.clone()).strftime(format).to_string(),
            None => "-".to_owned(),
        }
    }

    /// Reads a time that somebody typed, to nanoseconds since 1970: RFC 3339, `2026-11-22` or `2026-11-22 09:47` in this
    /// zone, or a span such as `2h` for that long before `now_ns`.
    pub fn parse(&self, text: &str, now_ns: i64) -> Result<i64> {
        if let Ok(span) = humantime::parse_duration(text) {
            let back = i64::try_from(span.as_nanos()).with_context(|| format!("{text}: too long ago"))?;
            return Ok(now_ns.saturating_sub(back));
        }
        let time = match text.parse::<Timestamp>() {
            Ok(time) => time,
            Err(_) => {
                let civil: jiff::civil::DateTime = text.parse().map_err(|_| {
                    anyhow!(
                        "{text:?} is no time: give 2026-11-22, \"2026-11-22 09:47\", RFC 3339, or a span such as 2h"
                    )
                })?;
                civil.to_zoned(self.0.clone()).with_context(|| format!("{text}: no such time here"))?.timestamp()
            }
        };
        i64::try_from(time.as_nanosecond()).with_context(|| format!("{text}: out of range"))
    }
}

/// The wall clock, nanoseconds since 1970.
pub fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// What lies between two wall-clock times; none where the first is the later (the clock was set back).
pub fn between(from_ns: i64, to_ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to_ns.saturating_sub(from_ns)).unwrap_or(0))
}

/// A span in at most six characters up to 100 days: `4ms`, `3.2s`, `45s`, `2m05s`, `3h20m`, `2d04h`.
pub fn span(span: Duration) -> String {
    let (ms, s) = (span.as_millis(), span.as_secs());
    match s {
        0 if ms == 0 => "<1ms".to_owned(),
        0 => format!("{ms}ms"),
        1..10 => format!("{s}.{}s", span.subsec_millis() / 100),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_795_348_800_000_000_001;

    #[test]
    fn programs_get_every_nanosecond() {
        assert_eq!(rfc3339(NOON).as_deref(), Some("2026-11-22T12:00:00.000000001Z"));
        assert_eq!(rfc3339(0), None);
        assert!(rfc3339(i64::MIN).is_some_and(|t| t.starts_with("1677-09-21T")));
        assert!(rfc3339(i64::MAX).is_some_and(|t| t.starts_with("2262-04-11T")));
    }

    #[test]
    fn people_get_their_zone() {
        let zone = Zone::new(true);
        assert_eq!(zone.full(NOON), "2026-11-22 12:00:00 UTC");
        assert_eq!(zone.clock(NOON), "12:00:00");
        assert_eq!(zone.minute(0), "-");
        assert_eq!(zone.near(NOON, NOON + 1), "Nov 22 12:00");
        assert_eq!(zone.near(NOON, i64::MAX), "2026-11-22");
        let berlin = Zone(TimeZone::fixed(jiff::tz::offset(1)));
        assert_eq!(berlin.full(NOON), "2026-11-22 13:00:00 +01");
    }

    #[test]
    fn reads_what_people_type() {
        let zone = Zone(TimeZone::fixed(jiff::tz::offset(1)));
        let parse = |text| zone.parse(text, NOON).ok();
        assert_eq!(parse("2h"), Some(NOON - 7_200_000_000_000));
        assert_eq!(parse("2026-11-22T12:00:00.000000001Z"), Some(NOON));
        assert_eq!(parse("2026-11-22 13:00"), Some(NOON - 1));
        assert_eq!(parse("2026-11-22"), Some(NOON - 1 - 13 * 3_600_000_000_000));
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn spans_stay_short() {
        let table = [
            (0, "<1ms"),
            (4, "4ms"),
            (3_299, "3.2s"),
            (45_900, "45s"),
            (125_000, "2m05s"),
            (12_000_000, "3h20m"),
            (187_200_000, "2d04h"),
        ];
        for (ms, shown) in table {
            assert_eq!(span(Duration::from_millis(ms)), shown);
        }
        assert_eq!(between(5, 3), Duration::ZERO);
    }
}
