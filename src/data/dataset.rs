//! Tokenised documents, and the rows that training sees: one document each, or packed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::batch::{Batch, IGNORE};
use super::cache::{RowFlags, RowStore, RowWriter};
use super::data_report::DataReport;
use super::pack::{self, Packed, Packing, RowOptions};
use super::prepare::{DataOptions, Preparation, Progress};
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Error, ErrorKind, Result};
use crate::rng::Stream;

/// A token of a row as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewToken {
    /// Its id.
    pub id: i32,
    /// What it adds to the text; a character of several tokens is with the last of them.
    pub text: String,
    /// Whether the loss counts it.
    pub supervised: bool,
    /// Whether a sequence begins with it.
    pub starts_sequence: bool,
}

/// The part of a data set that is kept aside for evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValidationSize {
    /// A part of the documents, between 0 and 1 exclusive; at least one document.
    Fraction(f64),
    /// A number of documents.
    Count(usize),
}

/// Tokenised documents and the rows made of them. Clones share the documents.
#[derive(Clone)]
pub struct Dataset {
    store: Arc<RowStore>,
    /// What was read: rows of the store.
    read: Arc<[u32]>,
    /// The documents among them that rows are made of.
    documents: Arc<[u32]>,
    options: RowOptions,
    packed: Option<Arc<Packed>>,
    files: Arc<[String]>,
}

impl Dataset {
    /// Reads, tokenises and masks the rows of JSONL files, as the options say.
    ///
    /// `template` is needed when the rows are conversations. The error names file, line and key of a
    /// row that does not fit.
    pub fn open(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: &DataOptions,
    ) -> Result<(Self, DataReport)> {
        Self::open_with(paths, tokenizer, template, options, &mut |_| true)
    }

    /// Like [`Dataset::open`]; `progress` is called now and then, and ends it by returning false
    /// (the error's kind is [`ErrorKind::Cancelled`]).
    pub fn open_with(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: &DataOptions,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<(Self, DataReport)> {
        let preparation = Preparation {
            paths,
            tokenizer,
            template,
            options,
        };
        check_rows(&options.rows)?;
        let (store, from_cache) = preparation.run(progress)?;
        let files = paths.iter().map(|p| p.display().to_string()).collect();
        let (dataset, mut report) = Self::from_store(store, files, options.rows)?;
        report.from_cache = from_cache;
        Ok((dataset, report))
    }

    /// A dataset of ready documents: `(ids, labels)` each, as a host may make them.
    ///
    /// Fails when ids and labels differ in number, or packing has no `max_length`.
    pub fn from_documents<'a>(
        documents: impl IntoIterator<Item = (&'a [i32], &'a [i32])>,
        options: RowOptions,
    ) -> Result<(Self, DataReport)> {
        let mut writer = RowWriter::new(None, [0; 32])?;
        for (i, (ids, labels)) in documents.into_iter().enumerate() {
            if ids.len() != labels.len() {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!(
                        "document {i} has {} ids and {} labels",
                        ids.len(),
                        labels.len()
                    ),
                ));
            }
            writer.push(ids, labels, 0, i as u64 + 1, RowFlags::default())?;
        }
        Self::from_store(writer.finish()?, Vec::new(), options)
    }

    pub(super) fn from_store(
        store: RowStore,
        files: Vec<String>,
        options: RowOptions,
    ) -> Result<(Self, DataReport)> {
        let rows = store.index().len();
        if u32::try_from(rows).is_err() {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{rows} rows are more than the {} supported", u32::MAX),
            ));
        }
        let read = (0..rows as u32).collect();
        Self::build(Arc::new(store), files.into(), read, options)
    }

    fn build(
        store: Arc<RowStore>,
        files: Arc<[String]>,
        read: Vec<u32>,
        options: RowOptions,
    ) -> Result<(Self, DataReport)> {
        let read: Arc<[u32]> = read.into();
        check_rows(&options)?;
        let limit = options.max_length.unwrap_or(usize::MAX);
        let cuts = !matches!(options.packing, Some(Packing::BfdSplit | Packing::Wrapped));

        let mut report = DataReport::default();
        let index = store.index();
        // The lines named are the first of the file, whatever the order of the documents.
        let mut in_file_order = read.to_vec();
        in_file_order.sort_unstable();
        for row in in_file_order.into_iter().map(|d| &index[d as usize]) {
            report.rows_read += 1;
            let len = row.len as usize;
            if len == 0 {
                report.empty.add(row.line);
                continue;
            }
            if cuts && len > limit {
                report.truncated.add(row.line);
                report.truncated_tokens += (len - limit) as u64;
            }
            let kept = if cuts { len.min(limit) } else { len };
            if row.first_supervised as usize >= kept {
                report.masked.add(row.line);
            }
            if row.flags().prompt_diverges {
                report.prompt_diverges.add(row.line);
            }
            if row.flags().eos_untrained {
                report.eos_untrained.add(row.line);
            }
        }
        let (documents, packed) = match options.packing {
            // Every document counts for the packing windows, also one that adds nothing to them.
            Some(packing) => {
                let lengths = read.iter().map(|&d| index[d as usize].len as usize);
                let packed = pack::pack(&lengths.collect::<Vec<_>>(), limit, packing);
                (read.clone(), Some(Arc::new(packed)))
            }
            None => {
                let has_target = |&d: &u32| {
                    let row = &index[d as usize];
                    (row.first_supervised as usize) < (row.len as usize).min(limit)
                };
                (read.iter().copied().filter(has_target).collect(), None)
            }
        };

        let dataset = Self {
            store,
            read,
            documents,
            options,
            packed,
            files,
        };
        report.rows = dataset.len() as u64;
        report.tokens = dataset.lengths().map(|n| n as u64).sum();
        report.longest = dataset.max_sequence_length() as u64;
        report.supervised_tokens = dataset.count_supervised();
        Ok((dataset, report))
    }

    /// A hash of the rows as training sees them: their tokens and labels, which of them, in which order,
    /// and how they are cut and packed. Two datasets with the same one train alike, whatever file,
    /// tokenizer or cache they came from. Reads no token: the store knows the hash of its own.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.store.content());
        let options = format!("{:?} {:?}", self.options.max_length, self.options.packing);
        hasher.update(options.as_bytes());
        hasher.update(bytemuck::cast_slice(&self.read));
        hasher.finalize().into()
    }

    /// Rows that training sees: documents, or packed rows.
    pub fn len(&self) -> usize {
        match &self.packed {
            Some(packed) => packed.len(),
            None => self.documents.len(),
        }
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).map(|i| match &self.packed {
            Some(packed) => packed.row(i).iter().map(|p| p.len).sum(),
            None => self.document_len(i),
        })
    }

    /// Tokens of the longest sequence that attention spans: a document, or a row of wrapped text.
    pub fn max_sequence_length(&self) -> usize {
        match (&self.packed, self.options.packing) {
            (Some(packed), Some(Packing::Bfd | Packing::BfdSplit)) => {
                let pieces = packed.rows().flatten();
                pieces.map(|p| p.len).max().unwrap_or(0)
            }
            _ => self.lengths().max().unwrap_or(0),
        }
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Ids and labels of document `index`, cut at `max_length` unless packing splits it.
    pub fn document(&self, index: usize) -> (&[i32], &[i32]) {
        let (ids, labels) = self.store.row(self.documents[index] as usize);
        let len = self.document_len(index);
        (&ids[..len], &labels[..len])
    }

    /// Where document `index` was read: `file:line`, or its number when the host gave it.
    pub fn place(&self, index: usize) -> String {
        let row = &self.store.index()[self.documents[index] as usize];
        match self.files.get(row.file as usize) {
            Some(file) => format!("{file}:{}", row.line),
            None => format!("document {}", row.line - 1),
        }
    }

    /// Appends row `index` to `batch`: a sequence for each document, or one for a wrapped row.
    pub fn push_row(&self, index: usize, batch: &mut Batch) {
        let Some(packed) = &self.packed else {
            let (ids, labels) = self.document(index);
            return batch.push(ids, labels);
        };
        let wrapped = self.options.packing == Some(Packing::Wrapped);
        for (i, piece) in packed.row(index).iter().enumerate() {
            let (ids, labels) = self.store.row(self.documents[piece.document] as usize);
            let range = piece.start..piece.start + piece.len;
            if wrapped && i > 0 {
                batch.tokens.extend_from_slice(&ids[range.clone()]);
                batch.labels.extend_from_slice(&labels[range]);
            } else {
                batch.push(&ids[range.clone()], &labels[range]);
            }
        }
    }

    /// The rows in order, `size` to a batch; the last batch may be short.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Batch> + '_ {
        let size = size.max(1);
        (0..self.len()).step_by(size).map(move |start| {
            let mut batch = Batch::default();
            for row in start..(start + size).min(self.len()) {
                self.push_row(row, &mut batch);
            }
            batch
        })
    }

    /// Row `index` token by token, for people to look at.
    pub fn preview(&self, index: usize, tokenizer: &Tokenizer) -> Result<Vec<PreviewToken>> {
        let mut batch = Batch::default();
        self.push_row(index, &mut batch);
        let mut tokens = Vec::with_capacity(batch.tokens.len());
        for sequence in batch.sequences() {
            let mut stream = tokenizer.stream(false);
            for i in sequence.clone() {
                tokens.push(PreviewToken {
                    id: batch.tokens[i],
                    text: stream.push(batch.tokens[i])?.unwrap_or_default(),
                    supervised: i > sequence.start && batch.labels[i] != IGNORE,
                    starts_sequence: i == sequence.start,
                });
            }
            if let (Some(rest), Some(last)) = (stream.finish()?, tokens.last_mut()) {
                last.text.push_str(&rest);
            }
        }
        Ok(tokens)
    }

    /// Splits into (training, validation): disjoint, together everything, drawn by `seed`. Both keep
    /// the order of the file; `validation` says how the rows of the second are made.
    ///
    /// Fails when either part would be empty.
    pub fn split(
        &self,
        size: ValidationSize,
        seed: u64,
        validation: RowOptions,
    ) -> Result<((Self, DataReport), (Self, DataReport))> {
        let rows = self.read.len();
        let wanted = match size {
            ValidationSize::Count(count) => count,
            ValidationSize::Fraction(part) if part > 0.0 && part < 1.0 => {
                ((rows as f64 * part).round() as usize).max(1)
            }
            ValidationSize::Fraction(part) => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("val_size {part} is not between 0 and 1"),
                ));
            }
        };
        if wanted == 0 || wanted >= rows {
            return Err(Error::new(
                ErrorKind::Config,
                format!("val_size takes {wanted} of {rows} rows; both parts need a row"),
            ));
        }
        let mut drawn = self.read.to_vec();
        draw(&mut drawn, wanted, &Stream::new(seed, SPLIT_STREAM));
        let mut train = drawn.split_off(wanted);
        train.sort_unstable();
        drawn.sort_unstable();
        let build = |documents, options| {
            Self::build(self.store.clone(), self.files.clone(), documents, options)
        };
        Ok((build(train, self.options)?, build(drawn, validation)?))
    }

    /// The same documents in an order drawn by `seed` (another than PyTorch's for that seed), with
    /// rows, packed ones too, made of them in that order.
    ///
    /// # Errors
    /// None but those of opening.
    pub fn shuffle(&self, seed: u64) -> Result<(Self, DataReport)> {
        let mut drawn = self.read.to_vec();
        let all = drawn.len();
        draw(&mut drawn, all, &Stream::new(seed, SHUFFLE_STREAM));
        Self::build(self.store.clone(), self.files.clone(), drawn, self.options)
    }

    fn document_len(&self, index: usize) -> usize {
        let len = self.store.index()[self.documents[index] as usize].len as usize;
        match (self.options.packing, self.options.max_length) {
            (None | Some(Packing::Bfd), Some(limit)) => len.min(limit),
            _ => len,
        }
    }

    /// Labels that count: supervised and not first of their sequence.
    fn count_supervised(&self) -> u64 {
        if self.packed.is_some() {
            let mut batch = Batch::default();
            return (0..self.len())
                .map(|row| {
                    batch.tokens.clear();
                    batch.labels.clear();
                    batch.seq_starts.clear();
                    self.push_row(row, &mut batch);
                    batch.supervised() as u64
                })
                .sum();
        }
        let index = self.store.index();
        let count = |i: usize| {
            let row = &index[self.documents[i] as usize];
            let first = u32::from(row.first_supervised == 0 && row.len > 0);
            if self.document_len(i) == row.len as usize {
                return u64::from(row.supervised - first);
            }
            let (_, labels) = self.document(i);
            labels[1..].iter().filter(|&&l| l != IGNORE).count() as u64
        };
        (0..self.documents.len()).map(count).sum()
    }
}

/// Fails before any work is done when the options contradict themselves.
fn check_rows(options: &RowOptions) -> Result<()> {
    let message = match (options.max_length, options.packing) {
        (Some(0), _) => "max_length must be at least 1",
        (None, Some(_)) => "packing needs max_length, the length of a packed row",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Config, message))
}

/// Draws `count` of the rows to the front, in the order drawn: a Fisher–Yates shuffle.
fn draw(rows: &mut [u32], count: usize, stream: &Stream) {
    for i in 0..count {
        let left = (rows.len() - i) as f64;
        rows.swap(i, i + (stream.uniform(i as u64) * left) as usize);
    }
}

/// The random streams that draw the validation split and the order of the documents, apart from
/// those of training.
const SPLIT_STREAM: u64 = 0x7370_6c69_7400;
const SHUFFLE_STREAM: u64 = 0x7368_7566_666c;

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("rows", &self.len())
            .field("documents", &self.documents.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
