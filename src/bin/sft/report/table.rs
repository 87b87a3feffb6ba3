//! A table with its caption, in a frame that scrolls by itself where it is wider than the page.

use crate::markup::Markup;

/// A table. The first cell of each row names the row.
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A row.
#[derive(Default)]
pub struct Row {
    /// `marked` for the row to see first, else nothing.
    pub class: &'static str,
    /// Its cells.
    pub cells: Vec<Cell>,
}

/// A cell.
pub enum Cell {
    /// Words.
    Text(String),
    /// A number, flush right.
    Number(String),
    /// A number, and the one that the run itself has.
    Own(String),
    /// What a file or a configuration holds.
    Code(String),
    /// A share of one as a bar with its number.
    Share(f64, String),
}

impl Table {
    /// Writes the table; nothing if it has no rows.
    pub fn write(&self, page: &mut Markup) {
        if self.rows.is_empty() {
            return;
        }
        let frame = [
            ("class", "scroll"),
            ("role", "region"),
            ("tabindex", "0"),
            ("aria-label", &self.caption[..]),
        ];
        page.within("div", &frame, |frame| {
            // Columns of words need room; where the page has none, the frame scrolls.
            let words = self.head.len() >= 4
                && self
                    .rows
                    .iter()
                    .any(|row| matches!(row.cells.last(), Some(Cell::Text(_))));
            let class = if words { "many" } else { "" };
            frame.within("table", &[("class", class)], |table| {
                table.within("caption", &[], |caption| {
                    caption.element("span", &[], &self.caption)
                });
                let numeric = |column: usize| {
                    let mut cells = self.rows.iter().filter_map(|row| row.cells.get(column));
                    cells.any(|cell| matches!(cell, Cell::Number(_) | Cell::Own(_)))
                };
                table.within("thead", &[], |head| {
                    head.within("tr", &[], |row| {
                        for (i, name) in self.head.iter().enumerate() {
                            let class = if numeric(i) { "number" } else { "" };
                            row.element("th", &[("scope", "col"), ("class", class)], name);
                        }
                    });
                });
                table.within("tbody", &[], |body| {
                    for row in &self.rows {
                        body.within("tr", &[("class", row.class)], |out| row.write(out));
                        body.newline();
                    }
                });
            });
        });
        page.newline();
    }
}

impl Row {
    fn write(&self, out: &mut Markup) {
        for (i, cell) in self.cells.iter().enumerate() {
            let class = match cell {
                Cell::Number(_) => "number",
                Cell::Own(_) => "number own",
                Cell::Text(_) | Cell::Code(_) | Cell::Share(..) => "",
            };
            let (name, scope) = if i == 0 { ("th", "row") } else { ("td", "") };
            let attributes = [("class", class), ("scope", scope)];
            let attributes: Vec<_> = attributes
                .into_iter()
                .filter(|(_, v)| !v.is_empty())
                .collect();
            out.within(name, &attributes, |out| match cell {
                Cell::Text(text) | Cell::Number(text) => out.text(text),
                Cell::Own(text) => {
                    out.element("strong", &[], text);
                    out.element("span", &[("class", "unseen")], " (of this run)");
                }
                Cell::Code(text) => out.element("code", &[], text),
                Cell::Share(share, text) => {
                    let width = format!("width:{:.1}%", 100.0 * share.clamp(0.0, 1.0));
                    out.within(
                        "span",
                        &[("class", "bar"), ("aria-hidden", "true")],
                        |bar| {
                            bar.element("span", &[("style", &width)], "");
                        },
                    );
                    out.text(text);
                }
            });
        }
    }
}
