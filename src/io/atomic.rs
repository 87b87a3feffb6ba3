//! Files and folders that appear whole or not at all.
//!
//! New content is written under a hidden name beside its destination, flushed to the device, and
//! moved into place by a rename; the parent folder is flushed last. Whatever fails before the rename
//! (a full disk, a broken source, a killed process) leaves the earlier content untouched. A leftover
//! of a killed process is removed by the next writer to the same destination: a live writer holds a
//! lock on it, which the system drops with the process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, RenameFlags};

use super::checksum::{FileSummary, verify};
use super::file_writer::FileWriter;
use crate::{Error, ErrorKind, Result};

/// Writes the file at `path` through `fill`; an earlier file stays whole until the new one is.
///
/// # Errors
/// Those of `fill`, and [`ErrorKind::Io`] naming the file.
pub fn write_file(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut FileWriter) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let parent = parent_of(path);
    let staged = parent.join(staging_name(path)?);
    let written = (|| {
        let mut writer = FileWriter::create(&staged, path, None)?;
        // Held until the file has its name.
        let _lock = writer.lock();
        remove_leftovers(path, &staged);
        fill(&mut writer)?;
        writer.finish()?;
        fs::rename(&staged, path).map_err(|e| Error::io(path, e))?;
        sync_folder(&parent)
    })();
    if written.is_err() {
        // Not there if creating it failed; then there is nothing to remove.
        let _ = fs::remove_file(&staged);
    }
    written
}

/// A folder under construction. Dropped without [`AtomicFolder::replace`] or
/// [`AtomicFolder::merge`], it vanishes.
pub struct AtomicFolder {
    destination: PathBuf,
    staging: PathBuf,
    /// The staging folder stands inside the destination, because that is a file system of its own
    /// or its parent cannot be written.
    inside: bool,
    /// Held while this value lives; tells other writers that the staging folder is in use.
    _lock: File,
    /// Names relative to the folder, in the order of creation.
    files: Vec<String>,
    /// Of the finished files, once asked for.
    summaries: Option<Vec<FileSummary>>,
}

impl AtomicFolder {
    /// Begins a folder that will stand at `destination`, whose missing parents are made.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if a file stands there, else [`ErrorKind::Io`].
    pub fn create(destination: impl AsRef<Path>) -> Result<Self> {
        let destination = destination.as_ref();
        let destination = match fs::canonicalize(destination) {
            Ok(resolved) => resolved,
            Err(_) => destination.to_owned(),
        };
        if destination.exists() && !destination.is_dir() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("{} is a file, not a folder", destination.display()),
            ));
        }
        let parent = parent_of(&destination);
        fs::create_dir_all(&parent).map_err(|e| Error::io(&parent, e))?;
        let inside = destination.is_dir() && is_mount_point(&destination, &parent);
        Self::stage(destination, inside)
    }

    /// `destination` is absent or a folder, and its parent exists.
    fn stage(destination: PathBuf, inside: bool) -> Result<Self> {
        let name = staging_name(&destination)?;
        let folder = match inside {
            true => destination.clone(),
            false => parent_of(&destination),
        };
        let staging = folder.join(name);
        match fs::create_dir(&staging) {
            Ok(()) => {}
            Err(_) if !inside && destination.is_dir() => return Self::stage(destination, true),
            Err(e) => return Err(Error::io(&destination, e)),
        }
        let lock = File::open(&staging).map_err(|e| {
            // Not there for long: it is empty.
            let _ = fs::remove_dir(&staging);
            Error::io(&destination, e)
        })?;
        // Not every file system can lock; the price is a leftover that stays.
        let _ = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
        remove_leftovers(&destination, &staging);
        Ok(Self {
            destination,
            staging,
            inside,
            _lock: lock,
            files: Vec::new(),
            summaries: None,
        })
    }

    /// Also computes a checksum of each segment of each file that is written from now on.
    pub fn with_checksums(mut self) -> Self {
        self.summaries.get_or_insert_default();
        self
    }

    /// The files that are finished, in the order of creation; empty without
    /// [`AtomicFolder::with_checksums`].
    pub fn summaries(&self) -> &[FileSummary] {
        self.summaries.as_deref().unwrap_or_default()
    }

    /// Where the folder will stand.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Begins the file `name`, which may lie in a subfolder (`a/b`).
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file.
    pub fn file(&mut self, name: &str) -> Result<FileWriter<'_>> {
        let (at, shown) = self.place(name)?;
        self.files.push(name.to_owned());
        let summaries = self.summaries.as_mut();
        FileWriter::create(&at, &shown, summaries.map(|all| (name, all)))
    }

    /// Where the file `name` is written and where it will stand; makes its subfolder.
    fn place(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let at = self.staging.join(name);
        let shown = self.destination.join(name);
        fs::create_dir_all(parent_of(&at)).map_err(|e| Error::io(&shown, e))?;
        Ok((at, shown))
    }

    /// Takes over the file that `summary` describes from the folder `from`, under the name `name`: the
    /// same file on disk where the file system can do that, which takes no space and lives on when
    /// `from` is deleted, else a copy. It must not be changed in place afterwards.
    ///
    /// # Errors
    /// Those of [`verify`], so that damage is not handed on; [`ErrorKind::Io`] naming the file. Nothing
    /// of the name is left in this folder then.
    pub fn link(&mut self, name: &str, from: &Path, summary: &FileSummary) -> Result<()> {
        verify(from, summary)?;
        let (at, shown) = self.place(name)?;
        let existing = from.join(&summary.name);
        let taken = fs::hard_link(&existing, &at)
            .or_else(|_| fs::copy(&existing, &at).and_then(|_| File::open(&at)?.sync_all()));
        if let Err(e) = taken {
            let _ = fs::remove_file(&at);
            return Err(Error::io(&shown, e));
        }
        self.files.push(name.to_owned());
        if let Some(all) = &mut self.summaries {
            all.push(FileSummary {
                name: name.to_owned(),
                ..summary.clone()
            });
        }
        Ok(())
    }

    /// Writes the file `name` with `content`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file.
    pub fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut writer = self.file(name)?;
        writer.write(content)?;
        writer.finish()
    }

    /// Puts the folder in place of whatever folder stands there, in one exchange where the system has
    /// one. On failure the earlier folder stays whole.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the destination.
    pub fn replace(self) -> Result<()> {
        self.merge(|_| true)
    }

    /// As [`AtomicFolder::replace`] if everything that stands there is `owned` (by its top-level name).
    /// Otherwise the foreign entries stay, each new file replaces its predecessor in the order of
    /// creation, and owned files that the new folder lacks are removed at the end. Nothing is moved
    /// before all new files are whole on the device, so a full disk changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] naming the file or folder.
    pub fn merge(self, owned: impl Fn(&str) -> bool) -> Result<()> {
        sync_tree(&self.staging, &self.destination)?;
        let old = match self.destination.is_dir() {
            true => list(&self.destination)?,
            false => BTreeSet::new(),
        };
        let is_foreign = |name: &String| !owned(name) && !is_staging(name, &self.destination);
        if self.inside || old.iter().any(is_foreign) {
            self.move_files(&old, owned)?;
        } else if self.destination.is_dir() {
            exchange(&self.staging, &self.destination)?;
        } else {
            fs::rename(&self.staging, &self.destination)
                .map_err(|e| Error::io(&self.destination, e))?;
        }
        sync_folder(&parent_of(&self.destination))
        // Dropping removes what the staging name holds now: nothing, or the earlier folder.
    }

    fn move_files(&self, old: &BTreeSet<String>, owned: impl Fn(&str) -> bool) -> Result<()> {
        let mut kept = BTreeSet::new();
        for name in &self.files {
            let target = self.destination.join(name);
            fs::create_dir_all(parent_of(&target))
                .and_then(|()| fs::rename(self.staging.join(name), &target))
                .map_err(|e| Error::io(&target, e))?;
            kept.insert(name.split('/').next().unwrap_or(name).to_owned());
        }
        for name in old {
            if owned(name) && !kept.contains(name) && !is_staging(name, &self.destination) {
                let path = self.destination.join(name);
                remove(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        sync_tree(&self.destination, &self.destination)
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        // Nothing can be reported from here; a later writer tries again.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Swaps two folders, so that `destination` is never absent where the system can do that.
fn exchange(staging: &Path, destination: &Path) -> Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, staging, CWD, destination, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            exchange_by_renames(staging, destination)
        }
        Err(e) => Err(Error::io(destination, e.into())),
    }
}

/// The fallback: three renames; if the second fails, the first is undone.
fn exchange_by_renames(staging: &Path, destination: &Path) -> Result<()> {
    let mut aside = staging.as_os_str().to_owned();
    aside.push("-old");
    let error = |e| Error::io(destination, e);
    fs::rename(destination, &aside).map_err(error)?;
    if let Err(e) = fs::rename(staging, destination) {
        return Err(match fs::rename(&aside, destination) {
            Ok(()) => error(e),
            Err(_) => error(e).context(format!(
                "the earlier folder now stands at {}",
                Path::new(&aside).display()
            )),
        });
    }
    fs::rename(&aside, staging).map_err(error)
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// `.NAME.partial-PID-N`
fn staging_name(destination: &Path) -> Result<String> {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let prefix = staging_prefix(destination).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{} does not name a file or folder", destination.display()),
        )
    })?;
    Ok(format!("{prefix}{}-{n}", std::process::id()))
}

fn staging_prefix(destination: &Path) -> Option<String> {
    let name = destination.file_name()?;
    Some(format!(".{}.partial-", name.to_string_lossy()))
}

fn is_staging(name: &str, destination: &Path) -> bool {
    staging_prefix(destination).is_some_and(|prefix| name.starts_with(&prefix))
}

/// Removes staging files and folders for `destination` whose writer is gone, all but `own`.
fn remove_leftovers(destination: &Path, own: &Path) {
    let parent = parent_of(own);
    for name in list(&parent).unwrap_or_default() {
        let path = parent.join(&name);
        if path == own || !is_staging(&name, destination) {
            continue;
        }
        let Ok(leftover) = File::open(&path) else {
            continue;
        };
        if rustix::fs::flock(&leftover, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = remove(&path);
        }
    }
}

fn is_mount_point(folder: &Path, parent: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(folder), fs::metadata(parent)) {
        (Ok(a), Ok(b)) => a.dev() != b.dev(),
        _ => false,
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

fn list(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .map_err(|e| Error::io(folder, e))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Flushes the entries of `folder` (names, not contents).
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io(folder, e))
}

/// Flushes the entries of `folder` and its subfolders; errors name them under `shown`.
fn sync_tree(folder: &Path, shown: &Path) -> Result<()> {
    let io = |e| Error::io(shown, e);
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            sync_tree(&entry.path(), &shown.join(entry.file_name()))?;
        }
    }
    File::open(folder).and_then(|f| f.sync_all()).map_err(io)
}

/// A disk that fills up, for the tests of this crate.
#[cfg(test)]
pub(crate) mod test_disk {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static FREE: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Runs `f` on a disk that has room for `bytes` more.
    pub fn with_free_bytes<T>(bytes: usize, f: impl FnOnce() -> T) -> T {
        FREE.set(Some(bytes));
        let result = f();
        FREE.set(None);
        result
    }

    pub fn take(bytes: usize) -> io::Result<()> {
        let Some(free) = FREE.get() else {
            return Ok(());
        };
        let left = free.checked_sub(bytes);
        FREE.set(Some(left.unwrap_or(0)));
        left.map(drop)
            .ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(dir: &Path, name: &str, content: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a"), content).unwrap();
        path
    }

    fn names(folder: &Path) -> Vec<String> {
        list(folder).unwrap().into_iter().collect()
    }

    #[test]
    fn full_disk_keeps_the_earlier_file_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        fs::write(&path, "old").unwrap();
        let error = test_disk::with_free_bytes(4, || {
            write_file(&path, |w| {
                w.write(b"new ")?;
                w.write(b"content")
            })
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("state.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["state.json"]);
    }

    #[test]
    fn what_a_killed_writer_left_goes_with_the_next_one_and_what_a_live_one_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        fs::write(dir.path().join(".state.json.partial-1-0"), "torn").unwrap();
        fs::write(dir.path().join(".other.json.partial-1-0"), "torn").unwrap();
        write_file(&path, |_| {
            // Another one that begins and ends meanwhile.
            write_file(&path, |w| w.write(b"first"))
        })
        .unwrap();
        assert_eq!(names(dir.path()), [".other.json.partial-1-0", "state.json"]);
    }

    #[test]
    fn full_disk_keeps_the_earlier_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder_with(dir.path(), "model", "old");
        let error = test_disk::with_free_bytes(3, || {
            let mut folder = AtomicFolder::create(&path)?;
            folder.write("a", b"new")?;
            folder.write("b", b"more")?;
            folder.replace()
        })
        .unwrap_err();
        assert!(error.to_string().contains("model/b"), "{error}");
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "old");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn a_folder_staged_inside_its_destination_replaces_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder_with(dir.path(), "model", "old");
        fs::write(path.join("b"), "old").unwrap();
        let stage = || AtomicFolder::stage(path.clone(), true).unwrap();

        let mut abandoned = stage();
        abandoned.write("a", b"half").unwrap();
        drop(abandoned);
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "old");

        let mut folder = stage();
        folder.write("a", b"new").unwrap();
        folder.replace().unwrap();
        assert_eq!(names(&path), ["a"]);
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
    }

    #[test]
    fn exchange_by_renames_swaps_and_undoes_itself() {
        let dir = tempfile::tempdir().unwrap();
        let old = folder_with(dir.path(), "old", "old");
        let new = folder_with(dir.path(), "new", "new");
        exchange_by_renames(&new, &old).unwrap();
        assert_eq!(fs::read_to_string(old.join("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(new.join("a")).unwrap(), "old");

        let missing = dir.path().join("missing");
        exchange_by_renames(&missing, &old).unwrap_err();
        assert_eq!(fs::read_to_string(old.join("a")).unwrap(), "new");
    }
}
