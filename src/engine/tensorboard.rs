//! TensorBoard's event files: the rows of the log as scalars, under the tags that transformers gives
//! them (`train/loss`, `eval/loss`, …).
//!
//! An event file is a sequence of records, all numbers little-endian:
//!
//! ```text
//! u64 length of the event, u32 checksum of these 8 bytes, the event, u32 checksum of the event
//! ```
//!
//! The checksum is a CRC-32C, rotated and offset. An event is a protocol buffer of which this file
//! writes four fields: `wall_time` (1, double), `step` (2, int64) and one of `file_version` (3,
//! string), `summary` (5) and `session_log` (7). Each leg of a run is a file of its own that begins
//! with a session log of status START: its step says from where on readers are to forget what
//! earlier files hold, so the rows that a resume abandons vanish from the curves.

use crate::error::{Error, Result};
use crate::number::parse_non_finite;
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The event file of one leg of a run.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    length: u64,
    /// Records that the file does not have yet, because a disk was full: they come before the next.
    pending: Vec<u8>,
    /// The file may hold a part of `pending` beyond `length`.
    torn: bool,
}

impl EventFile {
    /// Begins a file in `folder` for a leg whose rows are of `first_step` and later. On failure no file
    /// is left.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(file_name(folder));
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).open(&path);
        let mut events = Self {
            file: file.map_err(|e| Error::io(&path, e))?,
            path,
            length: 0,
            pending: Vec::new(),
            torn: false,
        };
        let now = wall_time();
        let begun = events
            .append(&event(now, 0, Content::FileVersion))
            .and_then(|()| events.append(&event(now, first_step, Content::Start)));
        match begun {
            Ok(()) => Ok(events),
            Err(error) => {
                events.remove();
                Err(error)
            }
        }
    }

    /// Takes the file away again, and its folder if nothing else is in it.
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent() {
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// Writes the numbers of a row of the log as one event. A row without numbers, such as the last
    /// one with the reason for the end, writes none.
    ///
    /// # Errors
    /// `Io`; the file stays readable, and the row is written before the next one.
    pub fn row(&mut self, row: &Value) -> Result<()> {
        let Some(row) = row.as_object() else {
            return Ok(());
        };
        let scalars = scalars(row);
        if scalars.is_empty() {
            return Ok(());
        }
        let step = row.get("step").and_then(Value::as_u64).unwrap_or(0);
        self.append(&event(wall_time(), step, Content::Scalars(&scalars)))
    }

    fn append(&mut self, event: &[u8]) -> Result<()> {
        self.pending.extend(framed(event));
        let result = self.flush();
        // Whatever follows half a record could not be read.
        self.torn = result.is_err() && self.cut().is_err();
        result.map_err(|e| Error::io(&self.path, e))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.torn {
            self.cut()?;
        }
        self.file.write_all(&self.pending)?;
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Cuts off what is no whole record.
    fn cut(&self) -> std::io::Result<()> {
        self.file.set_len(self.length)
    }
}

/// The numbers of a row with their tags. The row of an evaluation has the epoch and the time of the
/// update before it, which is left out: a curve has one point a step.
fn scalars(row: &Map<String, Value>) -> Vec<(String, f32)> {
    if row.contains_key("stop_reason") {
        return Vec::new();
    }
    let evaluates = row.keys().any(|key| key.starts_with("eval_"));
    let known = row.iter().filter_map(|(key, value)| {
        let tag = match key.strip_prefix("eval_") {
            Some(rest) => format!("eval/{rest}"),
            None if evaluates || key == "step" => return None,
            None => format!("train/{key}"),
        };
        let value = match value {
            Value::Number(x) => x.as_f64(),
            Value::String(text) => parse_non_finite(text),
            _ => None,
        };
        Some((tag, value? as f32))
    });
    known.collect()
}

/// `events.out.tfevents.<seconds>.<host>.<process>.<count>`. Readers take the files of a folder in
/// the order of their names, so the seconds are later than those of any file there.
fn file_name(folder: &Path) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let earlier = entries.filter_map(|entry| seconds_of(&entry.file_name()));
    let now = wall_time() as u64;
    let seconds = earlier.max().map_or(now, |last| now.max(last + 1));
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().replace('/', "_");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{PREFIX}{seconds:010}.{host}.{}.{count}",
        std::process::id()
    )
}

const PREFIX: &str = "events.out.tfevents.";

fn seconds_of(name: &OsStr) -> Option<u64> {
    let seconds = name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?;
    // What is no time of this millennium is not ours to follow.
    seconds.parse().ok().filter(|&s| s < 10_000_000_000)
}

fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

enum Content<'a> {
    FileVersion,
    Start,
    Scalars(&'a [(String, f32)]),
}

fn event(wall_time: f64, step: u64, content: Content) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    if step > 0 {
        event.varint(2, step);
    }
    match content {
        Content::FileVersion => event.bytes(3, b"brain.Event:2"),
        Content::Start => {
            let mut log = Message::default();
            log.varint(1, 1); // status: START
            event.bytes(7, &log.0);
        }
        Content::Scalars(scalars) => {
            let mut summary = Message::default();
            for (tag, value) in scalars {
                let mut scalar = Message::default();
                scalar.bytes(1, tag.as_bytes());
                scalar.float(2, *value);
                summary.bytes(1, &scalar.0);
            }
            event.bytes(5, &summary.0);
        }
    }
    event.0
}

/// A protocol buffer under construction: each field is its number and wire type in one varint, then
/// the value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// The CRC-32C as records hold it: changed, so that a checksum of data that holds checksums is none
/// of them.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a byte at a time: rows are short.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78); // the polynomial, bits reversed
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of the CRC catalogue, and RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    /// The bytes that tensorboard 2.21 writes for the same events.
    #[test]
    fn records_are_those_of_tensorboard() {
        let time = 1_700_000_000.25;
        let scalars = [
            ("train/loss".to_owned(), 1.5),
            ("eval/loss".to_owned(), f32::NAN),
            ("train/grad_norm".to_owned(), f32::NEG_INFINITY),
        ];
        assert_eq!(
            hex(&framed(&event(time, 300, Content::Scalars(&scalars)))),
            "4b00000000000000870999960900001040fc54d94110ac022a3d0a110a0a747261696e2f6c6f7373150000c0\
             3f0a100a096576616c2f6c6f7373150000c07f0a160a0f747261696e2f677261645f6e6f726d15000080ffe1\
             62282c"
        );
        assert_eq!(
            hex(&framed(&event(time, 0, Content::FileVersion))),
            "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9"
        );
        assert_eq!(
            hex(&framed(&event(time, 7, Content::Start))),
            "0f000000000000006d532b090900001040fc54d94110073a0208010f417177"
        );
    }

    /// The events of a file, after a look at every length and checksum.
    fn events(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked_crc(&rest[..8]));
            let event = &rest[12..12 + length];
            assert_eq!(crc(12 + length), masked_crc(event));
            events.push(event.to_vec());
            rest = &rest[16 + length..];
        }
        events
    }

    fn only_file(folder: &Path) -> PathBuf {
        let mut files = std::fs::read_dir(folder).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none());
        file
    }

    #[test]
    fn a_row_is_one_event_under_the_peers_tags() {
        let row = json!({"step": 3, "epoch": 0.5, "loss": "nan", "grad_norm": 2.0, "note": "x"});
        let tags = |row: &Value| scalars(row.as_object().unwrap());
        let train = tags(&row);
        let names: Vec<&str> = train.iter().map(|(tag, _)| &tag[..]).collect();
        assert_eq!(names, ["train/epoch", "train/loss", "train/grad_norm"]);
        assert!(train[1].1.is_nan());
        let row = json!({"step": 3, "epoch": 0.5, "eval_loss": 1.25, "eval_code_loss": 2.0,
            "elapsed_seconds": 3.0});
        let expected = [
            ("eval/loss".to_owned(), 1.25),
            ("eval/code_loss".to_owned(), 2.0),
        ];
        assert_eq!(tags(&row), expected);
        assert_eq!(
            tags(&json!({"step": 3, "stop_reason": "plateau", "best_value": 1.0})),
            []
        );

        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), 1).unwrap();
        file.row(&row).unwrap();
        file.row(&json!({"step": 3, "stop_reason": "plateau"}))
            .unwrap();
        let events = events(&only_file(folder.path()));
        assert_eq!(events.len(), 3, "the version, the start and the row");
        let tail = event(0.0, 3, Content::Scalars(&expected));
        assert_eq!(events[2][9..], tail[9..], "all but the time");
    }

    #[test]
    fn half_a_record_does_not_spoil_those_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut events_file = EventFile::create(folder.path(), 1).unwrap();
        // What a full disk leaves that cannot be cut off at once either.
        events_file.file.write_all(&[9; 21]).unwrap();
        let read_only = File::open(&events_file.path).unwrap();
        let writable = std::mem::replace(&mut events_file.file, read_only);
        let error = events_file
            .row(&json!({"step": 1, "loss": 1.0}))
            .unwrap_err();
        assert!(error.to_string().contains(PREFIX), "{error}");
        events_file.file = writable;
        events_file.row(&json!({"step": 2, "loss": 2.0})).unwrap();
        let events = events(&only_file(folder.path()));
        let steps: Vec<u8> = events[2..].iter().map(|event| event[10]).collect();
        assert_eq!(steps, [1, 2], "the row that failed comes first");
    }

    #[test]
    fn the_files_of_later_legs_are_named_later() {
        let folder = tempfile::tempdir().unwrap();
        // A clock that went back since.
        let future = wall_time() as u64 + 1000;
        let name = format!("{PREFIX}{future}.elsewhere.1.0");
        std::fs::write(folder.path().join(&name), "").unwrap();
        let first = EventFile::create(folder.path(), 1).unwrap();
        let second = EventFile::create(folder.path(), 5).unwrap();
        assert!(folder.path().join(name) < first.path && first.path < second.path);
        let name = first.path.file_name().unwrap().to_str().unwrap();
        let parts: Vec<&str> = name.strip_prefix(PREFIX).unwrap().split('.').collect();
        assert_eq!(parts[0], (future + 1).to_string());
        assert_eq!(parts[parts.len() - 2], std::process::id().to_string());
    }

    #[test]
    fn a_file_that_cannot_begin_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs");
        std::fs::write(&file, "").unwrap();
        assert!(EventFile::create(&file, 1).is_err());
        std::fs::remove_file(&file).unwrap();
        EventFile::create(&file, 1).unwrap().remove();
        assert!(!file.exists());
    }
}
