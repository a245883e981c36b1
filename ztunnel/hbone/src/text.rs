//! Values of headers as text.

/// The text of a value, if it is one that can be shown: what else there may be in a header has no meaning here.
pub(crate) fn visible(value: &[u8]) -> Option<&str> {
    let is_visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let text = str::from_utf8(value).ok()?;
    value.iter().all(is_visible).then_some(text)
}
