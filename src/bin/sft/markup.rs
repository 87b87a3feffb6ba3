//! HTML and SVG as text. Whatever comes in as text or attribute is escaped here and nowhere else; every
//! element is closed, so that the result is well-formed XML as well.

/// A piece of a document under construction.
#[derive(Debug, Default)]
pub struct Markup {
    text: String,
}

/// Names and values of attributes.
pub type Attributes<'a> = &'a [(&'a str, &'a str)];

impl Markup {
    /// `<name …>text</name>`.
    pub fn element(&mut self, name: &str, attributes: Attributes, text: &str) {
        self.within(name, attributes, |inner| inner.text(text));
    }

    /// `<name …>`, what `inner` writes, `</name>`.
    pub fn within(&mut self, name: &str, attributes: Attributes, inner: impl FnOnce(&mut Self)) {
        self.open(name, attributes);
        self.text.push('>');
        inner(self);
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
    }

    /// `<name …/>`, for elements that hold nothing.
    pub fn empty(&mut self, name: &str, attributes: Attributes) {
        self.open(name, attributes);
        self.text.push_str("/>");
    }

    /// Text, escaped.
    pub fn text(&mut self, text: &str) {
        self.text.push_str(&escape(text));
    }

    /// A line's end, for people who read the source.
    pub fn newline(&mut self) {
        self.text.push('\n');
    }

    /// Styles and scripts of our own, as they are.
    pub fn verbatim(&mut self, text: &'static str) {
        self.text.push_str(text);
    }

    /// Another piece, as it is.
    pub fn append(&mut self, piece: Markup) {
        self.text.push_str(&piece.text);
    }

    /// What has been written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn open(&mut self, name: &str, attributes: Attributes) {
        self.text.push('<');
        self.text.push_str(name);
        for (key, value) in attributes {
            self.text.push(' ');
            self.text.push_str(key);
            self.text.push_str("=\"");
            self.text.push_str(&escape(value));
            self.text.push('"');
        }
    }
}

/// `text` with nothing in it that a parser would take for markup; characters that XML has no place for
/// become U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut page = Markup::default();
        page.element(
            "p",
            &[("title", "a\"b' <")],
            "<script>&\u{1b}\u{0}</script>",
        );
        assert_eq!(
            page.as_str(),
            "<p title=\"a&quot;b&#39; &lt;\">&lt;script&gt;&amp;\u{FFFD}\u{FFFD}&lt;/script&gt;</p>"
        );
    }

    #[test]
    fn elements_nest_and_close() {
        let mut page = Markup::default();
        page.within("ul", &[], |list| {
            list.element("li", &[], "");
            list.empty("br", &[("class", "x")]);
        });
        assert_eq!(page.as_str(), "<ul><li></li><br class=\"x\"/></ul>");
    }
}
