//! Text with labels in front: aligned, and no wider than a terminal.

use super::text::{WIDTH, printable};

/// Columns of what stands in front of the text.
const LABEL: usize = 10;

/// Lines, without a newline at the end.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn labeled(&mut self, label: &str, text: &str) {
        self.line(&format!("{label:LABEL$}"), text);
    }

    /// What there is.
    pub(super) fn text(self) -> String {
        self.0
    }

    pub(super) fn blank(&mut self) {
        self.0.push('\n');
    }

    /// One line, and as many more as the text needs, aligned.
    pub(super) fn line(&mut self, head: &str, text: &str) {
        let indent = head.chars().count();
        for (number, part) in wrap(text, WIDTH.saturating_sub(indent))
            .into_iter()
            .enumerate()
        {
            if !self.0.is_empty() {
                self.0.push('\n');
            }
            match number {
                0 => self.0.push_str(head),
                _ => self.0.extend(std::iter::repeat_n(' ', indent)),
            }
            self.0.push_str(&part);
        }
    }
}

/// Lines of at most `width` characters; what is longer without a space is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let text = printable(text);
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let word: Vec<char> = word.chars().collect();
        for (number, part) in word.chunks(width.max(1)).enumerate() {
            let space = usize::from(length > 0);
            if number > 0 || length + space + part.len() > width {
                lines.push(String::new());
                length = 0;
            } else if space > 0 {
                lines.last_mut().into_iter().for_each(|line| line.push(' '));
                length += 1;
            }
            lines
                .last_mut()
                .into_iter()
                .for_each(|line| line.extend(part));
            length += part.len();
        }
    }
    lines
}
