//! Tables as the OpenStack clients draw them, because the people who use this know them by heart; and the choice of their
//! columns.

use comfy_table::{Attribute, Color, ContentArrangement, LineStyle, TableStyle, presets::ASCII_FULL_CONDENSED};
use serde::Serialize;
use serde_json::{Map, Value};

const STYLE: TableStyle = ASCII_FULL_CONDENSED.header_separator(LineStyle::new('+', '-', '+', '+'));

/// How wide prose may be.
const PAGE: u16 = 100;

/// What stands in one place of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// For people.
    shown: String,
    /// For programs, where that is something else: bytes without the size in words.
    bare: Option<String>,
    tone: Tone,
}

/// Whether a word is a good one. It shows as a colour, and nowhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tone {
    #[default]
    Plain,
    Good,
    Unsure,
    Bad,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { shown: text, ..Self::default() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

/// What there is not is an empty place.
impl From<&Option<String>> for Cell {
    fn from(text: &Option<String>) -> Self {
        text.clone().unwrap_or_default().into()
    }
}

impl From<bool> for Cell {
    fn from(truth: bool) -> Self {
        truth.to_string().into()
    }
}

/// As a JSON value is written where there is no JSON around it.
impl From<&Value> for Cell {
    fn from(value: &Value) -> Self {
        fn words(value: &Value) -> String {
            match value {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                Value::Array(values) if values.iter().all(|value| !value.is_object() && !value.is_array()) => {
                    values.iter().map(words).collect::<Vec<_>>().join(", ")
                }
                value => value.to_string(),
            }
        }
        words(value).into()
    }
}

impl Cell {
    fn value(&self) -> String {
        visible(self.bare.as_ref().unwrap_or(&self.shown))
    }

    /// Several in one place.
    fn joined(cells: &[&Self]) -> Self {
        match cells {
            [one] => (*one).clone(),
            several => several.iter().map(|cell| cell.shown.as_str()).collect::<Vec<_>>().join(", ").into(),
        }
    }

    fn drawn(&self) -> comfy_table::Cell {
        let cell = comfy_table::Cell::new(visible(&self.shown));
        match self.tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::DarkGreen),
            Tone::Unsure => cell.fg(Color::DarkYellow),
            Tone::Bad => cell.fg(Color::DarkRed),
        }
    }
}

/// A word for how something is.
pub(crate) fn state(word: &str) -> Cell {
    let tone = match word {
        "ready" | "running" | "succeeded" | "served" | "removed" | "ours" => Tone::Good,
        "residual" | "rescued" | "rescuing" | "unrescuing" | "undone" | "paused" | "other" | "warning" | "orphan"
        | "stale" | "amiss" => Tone::Unsure,
        "broken" | "failed" | "stuck" | "error" | "missing" => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell { tone, ..word.into() }
}

/// Why something is not as it should be.
pub(crate) fn problem(sentence: &str) -> Cell {
    Cell { tone: Tone::Bad, ..sentence.into() }
}

/// Bytes: `1073741824 (1 GiB)` for people, and always the exact number.
pub(crate) fn size(bytes: u64) -> Cell {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return bytes.to_string().into();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    let shown = match tenths % 10 {
        0 => format!("{bytes} ({} {unit})", tenths / 10),
        tenth => format!("{bytes} ({}.{tenth} {unit})", tenths / 10),
    };
    Cell { bare: Some(bytes.to_string()), ..shown.into() }
}

/// Its rows, and beside each the JSON fields of what it shows, which are columns, too, for those who ask for them.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Line>,
    /// The names of the JSON fields, whether or not there is a row.
    fields: Vec<String>,
    shape: Shape,
    /// Long sentences are broken into lines.
    wrapped: bool,
}

/// `None`: it has no such property, and no line is drawn for it.
struct Line {
    cells: Vec<Option<Cell>>,
    fields: Map<String, Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One thing: a line for each property.
    Properties,
    /// Many things: a line for each.
    List,
}

/// One of many: a row of a table.
pub(crate) trait Row: Serialize + Default {
    const COLUMNS: &'static [&'static str];

    /// Some of it are sentences, which are broken into lines.
    const PROSE: bool = false;

    fn cells(&self) -> Vec<Cell>;
}

/// A line of a table of properties.
pub(crate) type Property = (&'static str, Option<Cell>);

/// A property that is always there.
pub(crate) fn property(name: &'static str, value: impl Into<Cell>) -> Property {
    (name, Some(value.into()))
}

/// A property that may be missing.
pub(crate) fn perhaps<T: Into<Cell>>(name: &'static str, value: Option<T>) -> Property {
    (name, value.map(T::into))
}

/// A property that may be there several times.
pub(crate) fn each<T: Into<Cell>>(name: &'static str, values: impl IntoIterator<Item = T>) -> Vec<Property> {
    let several: Vec<_> = values.into_iter().map(|value| property(name, value)).collect();
    if several.is_empty() { vec![(name, None)] } else { several }
}

fn fields(of: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(of) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

impl Table {
    /// A table of one thing: what it has, and which.
    pub(crate) fn properties(of: &impl Serialize, properties: Vec<Property>) -> Self {
        let fields = fields(of);
        let (header, cells) = properties.into_iter().map(|(name, value)| (name.to_owned(), value)).unzip();
        let names = fields.keys().cloned().collect();
        Self { header, rows: vec![Line { cells, fields }], fields: names, shape: Shape::Properties, wrapped: false }
    }

    /// A table of many things, one row each.
    pub(crate) fn list<T: Row>(of: &[T]) -> Self {
        let line = |row: &T| Line { cells: row.cells().into_iter().map(Some).collect(), fields: fields(row) };
        let header = T::COLUMNS.iter().map(|&name| name.to_owned()).collect();
        let names = fields(&T::default()).keys().cloned().collect();
        Self { header, rows: of.iter().map(line).collect(), fields: names, shape: Shape::List, wrapped: T::PROSE }
    }

    /// For prose: no wider than a page.
    pub(crate) fn wrapped(self) -> Self {
        Self { wrapped: true, ..self }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All that may be asked for: what is drawn, then the fields.
    pub(crate) fn columns(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.header.iter().chain(&self.fields) {
            if !names.iter().any(|known| same(known, name)) {
                names.push(name);
            }
        }
        names
    }

    /// Only these columns, in this order; what is drawn goes before a field of the same name.
    ///
    /// The error is the first that there is not.
    pub(crate) fn select(&self, wanted: &[String]) -> Result<Self, String> {
        let mut selected = Self {
            header: Vec::new(),
            rows: self.rows.iter().map(|line| Line { cells: Vec::new(), fields: line.fields.clone() }).collect(),
            fields: Vec::new(),
            shape: self.shape,
            wrapped: self.wrapped,
        };
        for name in wanted {
            let drawn: Vec<usize> = (0..self.header.len()).filter(|&at| same(&self.header[at], name)).collect();
            let field = self.fields.iter().find(|field| same(field, name));
            let header = match (drawn.first(), field) {
                (Some(&at), _) => &self.header[at],
                (None, Some(field)) => field,
                (None, None) => return Err(name.clone()),
            };
            for (line, from) in selected.rows.iter_mut().zip(&self.rows) {
                let there: Vec<&Cell> = drawn.iter().filter_map(|&at| from.cells.get(at)?.as_ref()).collect();
                let field = || field.and_then(|field| from.fields.get(field)).map(Cell::from);
                let cell = if there.is_empty() { field() } else { Some(Cell::joined(&there)) };
                line.cells.push(Some(cell.unwrap_or_default()));
            }
            selected.header.push(header.clone());
        }
        Ok(selected)
    }

    /// For people.
    pub(crate) fn draw(&self, colour: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(STYLE);
        let header: Vec<&str> = match self.shape {
            Shape::Properties => vec!["Property", "Value"],
            Shape::List => self.header.iter().map(String::as_str).collect(),
        };
        table.set_header(header.iter().map(|name| comfy_table::Cell::new(name).add_attribute(Attribute::Bold)));
        for line in &self.rows {
            let cells = self.header.iter().zip(&line.cells);
            match self.shape {
                Shape::Properties => {
                    let there = cells.filter_map(|(name, cell)| Some((name, cell.as_ref()?)));
                    table.add_rows(there.map(|(name, cell)| vec![comfy_table::Cell::new(name), cell.drawn()]));
                }
                Shape::List => {
                    let drawn = cells.map(|(_, cell)| cell.as_ref().map(Cell::drawn));
                    table.add_row(drawn.map(|cell| cell.unwrap_or_else(|| comfy_table::Cell::new(""))));
                }
            }
        }
        if self.wrapped {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(PAGE);
        }
        if colour {
            table.enforce_styling();
            table.style_text_only();
        } else {
            table.force_no_tty();
        }
        table.to_string()
    }

    /// For programs: a line for each row, a tab between the columns, nothing where there is nothing.
    pub(crate) fn values(&self) -> Vec<String> {
        let value = |cell: &Option<Cell>| cell.as_ref().map(Cell::value).unwrap_or_default();
        let values = |line: &Line| line.cells.iter().map(value).collect::<Vec<_>>();
        self.rows.iter().map(|line| values(line).join("\t")).collect()
    }
}

/// `Logged-In` is `logged in` and `logged_in`.
fn same(a: &str, b: &str) -> bool {
    let plain = |name: &str| name.replace(['-', '_'], " ").to_lowercase();
    plain(a) == plain(b)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Serialize)]
    struct Thing {
        name: String,
        size_bytes: u64,
        tags: Vec<String>,
        parent: Option<String>,
    }

    impl Row for Thing {
        const COLUMNS: &'static [&'static str] = &["name", "size", "Logged in"];

        fn cells(&self) -> Vec<Cell> {
            vec![(&self.name).into(), size(self.size_bytes), state("ready")]
        }
    }

    fn things() -> Vec<Thing> {
        let thing = |name: &str| Thing { name: name.into(), size_bytes: 1 << 30, ..Thing::default() };
        vec![thing("a\tb"), Thing { tags: vec!["x".into(), "y".into()], ..thing("c") }]
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn looks_as_in_the_post() {
        let rows = [("path", "/dev/sdb"), ("scsi_wwn", "360000000000000000e00000000010001"), ("type", "block")];
        let mut rows: Vec<_> = rows.into_iter().map(|(name, value)| property(name, value)).collect();
        rows.push(perhaps::<String>("problem", None));
        assert_eq!(
            Table::properties(&(), rows).draw(false),
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
            Table::list::<Thing>(&[]).draw(false),
            "\
+------+------+-----------+
| name | size | Logged in |
+------+------+-----------+
+------+------+-----------+"
        );
    }

    #[test]
    fn columns_are_chosen_by_what_is_drawn_and_by_field() {
        let table = Table::list(&things());
        let values = |wanted: &[&str]| table.select(&names(wanted)).map(|table| table.values());
        assert_eq!(values(&["NAME"]).unwrap(), ["a\\tb", "c"]);
        assert_eq!(values(&["size", "size_bytes", "logged_in"]).unwrap()[1], "1073741824\t1073741824\tready");
        assert_eq!(values(&["tags", "parent", "name"]).unwrap()[1], "x, y\t\tc");
        assert_eq!(values(&["name", "colour"]).unwrap_err(), "colour");
        assert_eq!(table.columns(), ["name", "size", "Logged in", "parent", "size_bytes", "tags"]);
        assert!(Table::list::<Thing>(&[]).select(&names(&["tags"])).is_ok(), "without a row, too");
        assert_eq!(
            table.select(&names(&["tags"])).unwrap().draw(false),
            "\
+------+
| tags |
+------+
|      |
| x, y |
+------+"
        );
    }

    #[test]
    fn a_property_that_is_not_there_is_an_empty_column_and_no_line() {
        let mut properties = vec![property("size", size(1024)), perhaps::<String>("problem", None)];
        properties.extend(each("path via", ["/dev/sdb", "/dev/sdc"]));
        let table = Table::properties(&things()[1], properties);
        assert_eq!(table.values(), ["1024\t\t/dev/sdb\t/dev/sdc"]);
        let chosen = table.select(&names(&["problem", "path_via", "name"])).unwrap();
        assert_eq!(chosen.values(), ["\t/dev/sdb, /dev/sdc\tc"]);
        assert!(!table.draw(false).contains("problem") && chosen.draw(false).contains("| problem "));
    }

    #[test]
    fn only_colour_has_escapes() {
        let table = Table::list(&things());
        assert!(!table.draw(false).contains('\u{1b}'));
        let coloured = table.draw(true);
        assert!(coloured.contains("\u{1b}[38;5;2mready\u{1b}[39m"), "{coloured:?}");
        assert!(coloured.contains("\u{1b}[1mname"), "{coloured:?}");
        assert!(table.values().iter().all(|line| !line.contains('\u{1b}')));
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(visible("a\nb\u{1b}[31m\u{85}é"), "a\\nb\\u{1b}[31m\\u{85}é");
        assert_eq!(Table::properties(&(), vec![property("reference", "file:/a\nb")]).draw(false).lines().count(), 5);
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
            assert_eq!(size(bytes).shown, text);
            assert_eq!(size(bytes).value(), bytes.to_string());
        }
        assert!(size(u64::MAX).shown.starts_with("18446744073709551615 (16777215.9 TiB"));
    }
}
