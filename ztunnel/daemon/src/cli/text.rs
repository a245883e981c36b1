//! Text for a terminal: what is shown was named by whoever may create a service or a pod.

/// Columns of a line.
pub(super) const WIDTH: usize = 100;

/// `text` without what a terminal would act on, or would show elsewhere than where it stands.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| if is_acted_on(c) { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

fn is_acted_on(c: char) -> bool {
    let turns_or_hides = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || turns_or_hides
}

/// At most `width` characters: of what is longer, the beginning and the end.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (head, tail) = (kept - kept / 2, kept / 2);
    let head = characters.iter().take(head);
    let tail = characters.iter().skip(characters.len() - tail);
    head.chain(['…'].iter().take(width)).chain(tail).collect()
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (u128::from(count) * 10 / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A time for people: its two largest parts.
pub(super) fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m{:02}s", seconds % 60),
        () if days == 0 => format!("{hours}h{:02}m", minutes % 60),
        () => format!("{days}d{:02}h", hours % 24),
    }
}

/// How many there are of something.
pub(super) fn count(number: usize, singular: &str, plural: &str) -> String {
    match number {
        1 => format!("1 {singular}"),
        _ => format!("{number} {plural}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle_where_one_can_see_it() {
        for (text, width, expected) in [
            ("short", 5, "short"),
            ("longer", 5, "lo…er"),
            ("longer", 4, "lo…r"),
            ("longer", 1, "…"),
            ("longer", 0, ""),
            ("ééééé", 3, "é…é"),
        ] {
            assert_eq!(shortened(text, width), expected);
        }
    }

    #[test]
    fn nothing_is_left_that_a_terminal_acts_on() {
        let hostile = "a\u{1b}[2Jb\r\n\tc\u{202e}d\u{200b}\u{9b}e";
        let harmless = printable(hostile);
        assert_eq!(harmless.chars().count(), hostile.chars().count());
        assert_eq!(harmless.replace('\u{fffd}', ""), "a[2Jbcde");
    }

    #[test]
    fn numbers_are_for_people() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m01s"),
            (7_260, "2h01m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(time(seconds), expected);
        }
    }
}
