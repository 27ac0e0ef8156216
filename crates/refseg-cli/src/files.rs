//! Files and folders that appear whole or not at all.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::{Builder, TempDir};

/// Writes a file under a temporary name beside its place, then renames it.
///
/// # Errors
/// If the folder cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder_of(path))?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("`{}`: cannot write the file", path.display()))
}

/// The folder that a file lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Checks that a file can be put somewhere, before the work of making it is done.
///
/// # Errors
/// If its folder does not exist, or it is a folder itself.
pub(crate) fn check_destination(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        bail!(
            "`{}`: cannot be written, there is no folder `{}`",
            path.display(),
            folder.display()
        );
    }
    if path.is_dir() {
        bail!("`{}`: cannot be written, it is a folder", path.display());
    }
    Ok(())
}

/// A folder in the making: under a temporary name beside its place until it is complete.
pub(crate) struct NewFolder {
    temporary: TempDir,
    place: PathBuf,
}

impl NewFolder {
    /// Begins a folder that does not exist yet, or is empty.
    ///
    /// # Errors
    /// If something is in its place, or cannot be made there.
    pub(crate) fn begin(place: &Path) -> Result<Self> {
        check_free(place)?;
        let parent = folder_of(place);
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        fs::create_dir_all(parent)
            .and_then(|()| builder.tempdir_in(parent))
            .map(|temporary| Self {
                temporary,
                place: place.to_owned(),
            })
            .with_context(|| format!("`{}`: cannot make the folder", place.display()))
    }

    /// Where to write what it shall hold.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the complete folder in its place.
    ///
    /// # Errors
    /// If something has come to be there meanwhile.
    pub(crate) fn publish(self) -> Result<()> {
        check_free(&self.place)?;
        let made = self.temporary.keep();
        let publish = || {
            if self.place.is_dir() {
                fs::remove_dir(&self.place)?;
            }
            fs::rename(&made, &self.place)
        };
        publish().with_context(|| {
            format!(
                "`{}`: cannot take the place of `{}`",
                made.display(),
                self.place.display()
            )
        })
    }
}

fn check_free(place: &Path) -> Result<()> {
    let mut entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let message = format!("`{}`: cannot become a new folder", place.display());
            return Err(error).context(message);
        }
    };
    if entries.next().is_some() {
        bail!("`{}` exists and is not empty", place.display());
    }
    Ok(())
}

/// Temporary files are hidden. They are private unless told otherwise, while
/// what they become is to be as readable as any other file.
fn builder() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".refseg-").suffix(".tmp");
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_complete_and_only_where_there_is_none() -> Result<()> {
        let outer = tempfile::tempdir()?;
        let place = outer.path().join("model");
        let new = NewFolder::begin(&place)?;
        fs::write(new.path().join("config.json"), "{}")?;
        assert!(!place.exists());
        new.publish()?;
        assert!(place.join("config.json").is_file());
        assert!(NewFolder::begin(&place).is_err());
        assert_eq!(fs::read_dir(outer.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn given_up_folders_leave_nothing() -> Result<()> {
        let outer = tempfile::tempdir()?;
        drop(NewFolder::begin(&outer.path().join("model"))?);
        assert_eq!(fs::read_dir(outer.path())?.count(), 0);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn files_are_readable_for_others() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let outer = tempfile::tempdir()?;
        let (ours, plain) = (outer.path().join("a"), outer.path().join("b"));
        write_whole(&ours, b"a")?;
        fs::write(&plain, b"b")?;
        let mode = |path: &Path| fs::metadata(path).map(|m| m.permissions().mode());
        assert_eq!(mode(&ours)?, mode(&plain)?);
        Ok(())
    }
}
