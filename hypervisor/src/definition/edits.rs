//! Splicing into a text: what is not edited stays byte for byte as it is.

use super::odd;
use driver::{Error, Result};
use roxmltree::{Attribute, Node};
use std::{ops::Range, path::Path};

/// Changes to a text, in any order.
#[derive(Debug)]
pub(super) struct Edits<'a> {
    text: &'a str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, edits: Vec::new() }
    }

    /// Puts text in, as it stands. What is put in at the same place stands in the order of the calls.
    pub(super) fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.edits.push((at..at, text.into()));
    }

    /// Puts text in the place of a part.
    pub(super) fn replace(&mut self, part: Range<usize>, text: impl Into<String>) {
        self.edits.push((part, text.into()));
    }

    /// Takes an element out, with the space before it.
    pub(super) fn remove(&mut self, node: Node<'_, '_>) {
        let range = node.range();
        let before = self.text[..range.start].trim_end_matches([' ', '\t', '\r', '\n']).len();
        self.replace(before..range.end, "");
    }

    /// Gives an attribute a value, which is escaped already.
    pub(super) fn set(&mut self, attribute: &Attribute<'_, '_>, escaped: &str) -> Result<()> {
        let value = attribute.range_value();
        // The parser counts what stands between name and value in a few bits only.
        let quote = |at: Option<usize>| at.and_then(|at| self.text.as_bytes().get(at)).copied();
        let quotes = (quote(value.start.checked_sub(1)), quote(Some(value.end)));
        match quotes {
            (Some(b'"'), Some(b'"')) | (Some(b'\''), Some(b'\'')) => {
                self.replace(value, escaped);
                Ok(())
            }
            _ => Err(odd(format!("its attribute {} is written too oddly", attribute.name()))),
        }
    }

    /// The text with all of them made. One within a part that is taken out goes with it.
    pub(super) fn apply(mut self) -> String {
        self.edits.sort_by_key(|(part, _)| (part.start, part.end));
        let mut text = String::with_capacity(self.text.len() + 1024);
        let mut done = 0;
        for (part, new) in self.edits {
            if part.start >= done {
                text.push_str(&self.text[done..part.start]);
                text.push_str(&new);
                done = part.end;
            }
        }
        text.push_str(&self.text[done..]);
        text
    }
}

/// A value as it may stand in an attribute, whatever quotes it has, and in an element.
pub(super) fn escaped(value: &str) -> Result<String> {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&apos;"),
            // XML has no way to write these down, or reads them as something else.
            odd if odd.is_control() || matches!(odd, '\u{fffe}' | '\u{ffff}') => {
                return Err(Error::invalid("name", format!("{value:?} has a character that XML cannot hold")));
            }
            plain => text.push(plain),
        }
    }
    Ok(text)
}

/// A path as [`escaped`].
pub(super) fn escaped_path(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::invalid("path", format!("{} is not UTF-8", path.display())))?;
    escaped(text)
}
