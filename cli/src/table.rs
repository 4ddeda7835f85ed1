//! Tables as the OpenStack clients draw them, because the people who use this know them by heart.

use comfy_table::{LineStyle, Table, TableStyle, presets::ASCII_FULL_CONDENSED};

const STYLE: TableStyle = ASCII_FULL_CONDENSED.header_separator(LineStyle::new('+', '-', '+', '+'));

/// A table of one thing: what it has, and which.
pub(crate) fn properties(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    columns(&["Property", "Value"], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]))
}

/// A table of many things, one row each.
pub(crate) fn columns(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.iter().copied());
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| visible(cell)).collect::<Vec<_>>()));
    table.to_string()
}

/// The text with every control character escaped: a name from a disk must not drive the terminal.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Bytes for people: `1 GiB`, `1.5 GiB`, and always the exact number.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{bytes} ({} {unit})", tenths / 10),
        tenth => format!("{bytes} ({}.{tenth} {unit})", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_in_the_post() {
        let rows = [("path", "/dev/sdb"), ("scsi_wwn", "360000000000000000e00000000010001"), ("type", "block")];
        assert_eq!(
            properties(rows.map(|(name, value)| (name, value.to_owned()))),
            "\
+----------+-----------------------------------+
| Property | Value                             |
+----------+-----------------------------------+
| path     | /dev/sdb                          |
| scsi_wwn | 360000000000000000e00000000010001 |
| type     | block                             |
+----------+-----------------------------------+"
        );
    }

    #[test]
    fn nothing_is_a_header_only() {
        assert_eq!(
            columns(&["id", "path"], []),
            "\
+----+------+
| id | path |
+----+------+
+----+------+"
        );
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(visible("a\nb\u{1b}[31m\u{85}é"), "a\\nb\\u{1b}[31m\\u{85}é");
        assert_eq!(columns(&["reference"], [vec!["file:/a\nb".to_owned()]]).lines().count(), 5);
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (1 << 30, "1073741824 (1 GiB)"),
            (3 << 29, "1610612736 (1.5 GiB)"),
            (5 << 40, "5497558138880 (5 TiB)"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).starts_with("18446744073709551615 (16777215.9 TiB"));
    }
}
