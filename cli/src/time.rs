//! Durations and moments as people write and read them. Moments are unix seconds and shown in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// Longer is surely a mistake, and shorter than what a clock can hold.
const LONGEST: u64 = 100 * 365 * DAY;

/// The wall clock. A clock before 1970 counts as 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `90s`, `30m`, `1h`, `7d`, `2w`, `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong = || "a duration is a number with a unit, like 90s, 30m, 1h, 7d or 1h30m".to_owned();
    if text.is_empty() || !text.is_ascii() {
        return Err(wrong());
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match after.bytes().next() {
            Some(b's') => 1,
            Some(b'm') => MINUTE,
            Some(b'h') => HOUR,
            Some(b'd') => DAY,
            Some(b'w') => WEEK,
            Some(_) | None => return Err(wrong()),
        };
        total = number
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= LONGEST)
            .ok_or("a duration is at most 100 years")?;
        rest = &after[1..];
    }
    if total == 0 {
        return Err("a duration of nothing: the least is 1s".to_owned());
    }
    Ok(total)
}

/// The two largest units that are not zero: "1 hour 30 minutes".
pub(crate) fn words(seconds: u64) -> String {
    let units = [
        (DAY, "day"),
        (HOUR, "hour"),
        (MINUTE, "minute"),
        (1, "second"),
    ];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, name) in units {
        let count = rest / size;
        rest %= size;
        match count {
            0 => {}
            1 => parts.push(format!("1 {name}")),
            many => parts.push(format!("{many} {name}s")),
        }
    }
    parts.truncate(2);
    if parts.is_empty() {
        "0 seconds".to_owned()
    } else {
        parts.join(" ")
    }
}

/// "in 1 hour", "5 minutes ago", "now".
pub(crate) fn relative(moment: u64, now: u64) -> String {
    if moment > now {
        format!("in {}", words(moment - now))
    } else if moment < now {
        format!("{} ago", words(now - moment))
    } else {
        "now".to_owned()
    }
}

/// `2026-11-21 12:34:01 UTC`
pub(crate) fn utc(moment: u64) -> String {
    let (date, clock) = civil(moment);
    format!("{date} {clock} UTC")
}

/// `2026-11-21T12:34:01Z`
pub(crate) fn rfc3339(moment: u64) -> String {
    let (date, clock) = civil(moment);
    format!("{date}T{clock}Z")
}

/// Date and time of day of the Gregorian calendar.
fn civil(moment: u64) -> (String, String) {
    let mut days = moment / DAY;
    let mut year: u64 = 1970;
    // A ledger may hold any number; beyond the year 9999 only "far away" matters.
    let far = 9999;
    while year < far {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let day = days.min(30) + 1;
    let second = moment % DAY;
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!(
            "{:02}:{:02}:{:02}",
            second / HOUR,
            second % HOUR / MINUTE,
            second % MINUTE
        ),
    )
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("30m", 1800),
            ("1h", 3600),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "1",
            "h",
            "1x",
            "-1h",
            "1.5h",
            "0s",
            "1h30",
            "1 h",
            "99999999999999999999s",
            "999999999999w",
            "101w1000000d",
            "1µ",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_length_of_time_reads_like_speech() {
        assert_eq!(words(0), "0 seconds");
        assert_eq!(words(1), "1 second");
        assert_eq!(words(3600), "1 hour");
        assert_eq!(words(5400), "1 hour 30 minutes");
        assert_eq!(words(2 * DAY + 3 * HOUR + 59), "2 days 3 hours");
        assert_eq!(relative(3700, 100), "in 1 hour");
        assert_eq!(relative(100, 160), "1 minute ago");
        assert_eq!(relative(7, 7), "now");
    }

    #[test]
    fn moments_are_dates_of_the_calendar() {
        // As `date -u -d @N` prints them.
        for (moment, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_264_441, "2026-11-21 12:34:01 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (1_798_761_600, "2027-01-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(moment), text);
        }
        assert_eq!(rfc3339(1_795_264_441), "2026-11-21T12:34:01Z");
        assert!(utc(u64::MAX).starts_with("9999-"));
    }
}
