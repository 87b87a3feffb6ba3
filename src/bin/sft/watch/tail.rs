//! The growing end of a log that another process writes, and may cut.

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Seek, SeekFrom};
use std::path::PathBuf;

/// Reads a log line by line as it grows.
pub struct Tail {
    path: PathBuf,
    /// Bytes that were read as whole lines.
    offset: u64,
    /// The last of these lines. If it no longer stands there, the log was cut and went on otherwise.
    last: Vec<u8>,
}

/// What one look at the log found.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// The lines come from the beginning again: what was read before no longer holds.
    pub again: bool,
    /// Whole lines that were not read before.
    pub lines: Vec<String>,
}

impl Tail {
    /// The log at `path`, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            last: Vec::new(),
        }
    }

    /// Forgets what was read: the next look begins at the first line.
    pub fn rewind(&mut self) {
        (self.offset, self.last) = (0, Vec::new());
    }

    /// Reads the lines that came since the last look; a line without its end is left for the next.
    pub fn read(&mut self) -> Result<News> {
        let mut again = false;
        let mut bytes = self.read_from_last()?;
        if !bytes.starts_with(&self.last) {
            again = true;
            self.rewind();
            bytes = self.read_from_last()?;
        }
        let new = &bytes[self.last.len()..];
        let whole = new
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let lines: Vec<&[u8]> = new[..whole]
            .split_inclusive(|&byte| byte == b'\n')
            .collect();
        let text = |line: &&[u8]| String::from_utf8_lossy(line).trim_end().to_owned();
        let news = News {
            again,
            lines: lines.iter().map(text).collect(),
        };
        if let Some(last) = lines.last() {
            self.last = last.to_vec();
        }
        self.offset += whole as u64;
        Ok(news)
    }

    /// What stands from the beginning of the last line on; nothing where there is no file.
    fn read_from_last(&self) -> Result<Vec<u8>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.offset - self.last.len() as u64))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn news(again: bool, lines: &[&str]) -> News {
        News {
            again,
            lines: lines.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    #[test]
    fn whole_lines_come_once_however_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::new(path.clone());
        assert_eq!(
            tail.read().unwrap(),
            News::default(),
            "there is no file yet"
        );
        let mut file = File::create(&path).unwrap();
        assert_eq!(tail.read().unwrap(), News::default());
        for (text, lines) in [
            ("a\nb", &["a"][..]),
            ("", &[]),
            ("b\n", &["bb"]),
            ("\n", &[""]),
        ] {
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(tail.read().unwrap(), news(false, lines), "{text:?}");
        }
    }

    #[test]
    fn a_log_that_was_cut_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::new(path.clone());
        std::fs::write(&path, "1\n2\n3\n").unwrap();
        tail.read().unwrap();
        std::fs::write(&path, "1\n2\n").unwrap();
        assert_eq!(tail.read().unwrap(), news(true, &["1", "2"]));
        // Cut and grown past where it was between two looks.
        std::fs::write(&path, "1\nx\n3\n4\n").unwrap();
        assert_eq!(tail.read().unwrap(), news(true, &["1", "x", "3", "4"]));
        std::fs::write(&path, "1\nx\n3\n4\n5\n").unwrap();
        assert_eq!(tail.read().unwrap(), news(false, &["5"]));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(tail.read().unwrap(), news(true, &[]));
    }

    #[test]
    fn a_log_may_be_read_from_the_beginning_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::new(path.clone());
        std::fs::write(&path, "1\n2\n").unwrap();
        tail.read().unwrap();
        tail.rewind();
        assert_eq!(tail.read().unwrap(), news(false, &["1", "2"]));
    }
}
