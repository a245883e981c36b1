//! Texts that operators write, and what they mean. Every function says what it did not like.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Longer than anything one means, and far from overflowing a clock.
pub(super) const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    let number: T = text
        .parse()
        .map_err(|_| "not a whole number in range".to_owned())?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(format!("not between {} and {}", range.start(), range.end()))
}

/// `90s`, `1m30s`, `500ms`, `24h`, `7d`; a bare number means seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    duration_in(text, Duration::ZERO, LONGEST)
}

pub(super) fn duration_in(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text.trim())?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("not between {least:?} and {most:?}"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let (count, after) = rest.split_at(digits.unwrap_or(rest.len()));
        let (unit, after) = after.split_at(
            after
                .find(|c: char| !c.is_alphabetic())
                .unwrap_or(after.len()),
        );
        let count: u64 = count
            .parse()
            .map_err(|_| "not a duration: a number and a unit are expected".to_owned())?;
        let unit = unit_of(unit).ok_or_else(|| format!("unknown unit {unit:?}"))?;
        let part = u32::try_from(count)
            .ok()
            .and_then(|count| unit.checked_mul(count));
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or("too long")?;
        rest = after.trim_start();
    }
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    Ok(total)
}

fn unit_of(name: &str) -> Option<Duration> {
    const HOUR: u64 = 60 * 60;
    Some(match name {
        "ns" => Duration::from_nanos(1),
        "us" | "µs" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(HOUR),
        "d" => Duration::from_secs(24 * HOUR),
        "w" => Duration::from_secs(7 * 24 * HOUR),
        _ => return None,
    })
}

/// A number of threads, or a share of the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    All,
    Count(NonZeroUsize),
    Percent(u8),
}

pub(super) fn threads(text: &str) -> Result<Threads, String> {
    const MOST: usize = 4096;
    if let Some(percent) = text.strip_suffix('%') {
        return number(percent, 1..=100).map(Threads::Percent);
    }
    let count = number(text, 0..=MOST)?;
    Ok(NonZeroUsize::new(count).map_or(Threads::All, Threads::Count))
}

/// A CPU quantity as Kubernetes writes it (`2`, `1.5`, `500m`), rounded up to whole CPUs.
pub(super) fn cpus(text: &str) -> Result<NonZeroUsize, String> {
    let wrong = || "not a CPU quantity".to_owned();
    let (digits, thousandths) = match text.strip_suffix('m') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: usize = number(whole, 0..=1_000_000)?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let more = usize::from(fraction.bytes().any(|digit| digit != b'0'));
    let count = if thousandths {
        (whole + more).div_ceil(1000)
    } else {
        whole + more
    };
    NonZeroUsize::new(count).ok_or_else(|| "zero CPUs".to_owned())
}

/// Bytes as Kubernetes writes them: `268435456`, `256Mi`, `1G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text, 1));
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("not a number of bytes".to_owned());
    }
    let count: Option<u64> = digits.parse().ok();
    count
        .and_then(|count| count.checked_mul(unit))
        .ok_or_else(|| "not a number of bytes in range".to_owned())
}

/// A name of something in Kubernetes: a part of paths and of identities, so nothing in it may end such a part.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    if text.len() > 253 || !text.chars().all(allowed) {
        return Err("not a name".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err("not an absolute path".to_owned())
}
